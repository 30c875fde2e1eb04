"""Guards: each rule in the case it is for and in none beside it; what is said once, remembered, and refused."""

from __future__ import annotations

import re
import tomllib
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from burnish.envs.types import Episode, Message, Reward, Task, Turn
from burnish.inspector.runs import read_run
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.run.alarms import GuardStop, RollBack, heed, watch_over
from burnish.run.folder import RunFolder, create_run
from burnish.trainer.watch.answers import LETTERS, LONGEST, WORDS, Answers, answers_of, constant, near_words, phrase_shares, spread_phrase
from burnish.trainer.watch.guards import QUIET, RULES, Alarm, GuardsConfig, Kind, PhaseHistory, Watch, parting
from burnish.trainer.watch.trend import held_out_change

pytestmark = pytest.mark.unit

LIMITS = GuardsConfig()
WHAT = {"name": "g", "model": "nano", "environment": "burnish/Arithmetic-v0", "platform": "cpu"}


def episode(task: int, said: str, prompt: str | None = None, success: float = 0.0, labels: Mapping[str, str] | None = None) -> Episode:
    messages = (Message("user", prompt or f"task {task}"), Message("assistant", said))
    ids = np.arange(1, dtype=np.int32)
    turn = Turn(ids, np.zeros(1, np.float32), ids, "stop")
    return Episode(Task(f"t-{task}", task), 0, (), messages, Reward(success, {"ok": success}), (turn,), labels=labels or {})


def step(**metrics: float) -> dict[str, float]:
    plain = {
        "episodes": 64.0,
        "failed": 0.0,
        "rewarded": 64.0,
        "success": 0.4,
        "reward_mean": 0.4,
        "reward_std": 0.5,
        "groups_trained": 8.0,
        "learner/entropy": 0.2,
    }
    return {**plain, **metrics}


def found(rows: Sequence[Mapping[str, float]], first: Sequence[Answers] = (), last: Sequence[Answers] = ()) -> dict[str, str]:
    seen = PhaseHistory(rows, first, last)
    return {name: text for name, rule in RULES.items() if (text := rule(seen, LIMITS)) is not None}


def ramp(name: str, before: float, after: float, **others: tuple[float, float]) -> list[dict[str, float]]:
    """12 steps at one value and 12 at another, with a little noise; further metrics likewise, "/" written as "__"."""
    moving = {name: (before, after), **{key.replace("__", "/"): ends for key, ends in others.items()}}
    wobble = (0.0, 0.01, -0.01)
    return [step(**{key: ends[i >= 12] + wobble[i % 3] for key, ends in moving.items()}) for i in range(24)]


def test_a_quiet_run_raises_nothing() -> None:
    assert found([step()] * 30) == {}
    assert found(ramp("success", 0.4, 0.7, reward_mean=(0.4, 0.7), episode__tokens=(20, 60))) == {}, (
        "it got better: longer answers may be why"
    )


def test_what_one_step_tells() -> None:
    assert found([step(), step(**{"learner/updates_skipped": 2.0})]) == {"non_finite": "2 update(s) were not finite and left out"}
    assert found([step(**{"learner/reference_kl": 0.7})])["kl"].startswith(
        "KL to the reference is 0.7 nats per token, above guards.kl_max = 0.5"
    )
    assert found([step(groups_trained=0.0)]) == {}
    assert found([step(groups_trained=0.0)] * 2) == {"empty": "no group taught anything for 2 steps"}


def test_entropy_is_compared_with_the_start() -> None:
    def entropies(*values: float) -> dict[str, str]:
        return found([step(**{"learner/entropy": value}) for value in values])

    assert entropies(0.2, 0.2, 0.2, 0.03, 0.03, 0.03) == {}
    assert entropies(0.2, 0.2, 0.2, 0.01, 0.01, 0.01)["entropy"].startswith("entropy fell from 0.2 to 0.01")
    assert entropies(0.2, 0.2, 0.2, 0.7, 0.7, 0.7)["entropy"].startswith("entropy rose from 0.2 to 0.7")


def test_a_reward_that_parts_from_success() -> None:
    fell = found(ramp("reward_mean", 0.4, 0.8, success=(0.4, 0.2), reward__phrase=(0.0, 0.6)))
    assert fell == {"parting": "reward rose by 0.399 and success fell by 20 points: what rose is phrase (+0.6)"}
    flat = found(ramp("reward_mean", 0.4, 0.8, reward__phrase=(0.0, 0.4)))
    assert flat["parting"].startswith("reward rose by 0.399 and success did not (")
    assert found(ramp("reward_mean", 0.4, 0.6)) == {}, "less than half a standard deviation, which a price of tool calls may give"
    assert found(ramp("success", 0.4, 0.2)) == {}, "getting worse at everything is no parting"


def measured(reward: tuple[float, float], success: tuple[float, float], **more: tuple[float, float]) -> list[dict[str, float]]:
    """20 steps whose own reward and success rise by 0.4 after the ninth, measured on 50 held-out tasks after 5 and 20."""
    wobble = (0.0, 0.01, -0.01)
    plain = [0.4 + 0.4 * (i >= 9) + wobble[i % 3] for i in range(20)]
    others = [{name.replace("__", "/"): ends[i >= 9] for name, ends in more.items()} for i in range(20)]
    rows = [step(reward_mean=one, success=one, **other) for one, other in zip(plain, others, strict=True)]
    for i, at in enumerate((4, 19)):
        held_out = {"tasks": 50.0, "reward_mean": reward[i], "reward_std": 0.5, "success": success[i]}
        rows[at] |= {f"held_out/{name}": value for name, value in held_out.items()}
    return rows


def test_a_reward_that_held_out_tasks_do_not_follow() -> None:
    """By hand: the means of steps 2 to 8 and 14 to 20 have a variance of 0.5² / 64 / 7 = 0.00056 each, and a measurement's is
    0.5² / 49 = 0.0051. So a gap of 0.4 - 0.05 is 0.35 / sqrt(0.0113) = 3.29 errors wide, with 110 degrees of freedom: p = 0.0014."""
    rows = measured((0.4, 0.45), (0.4, 0.45))
    change = held_out_change(rows)
    assert change is not None and change.training.difference == pytest.approx(0.4, abs=0.01)
    assert change.p_apart == pytest.approx(0.0014, abs=0.0003)
    by_heart = "since step 5, reward rose by 0.4 in training, and on 50 held-out tasks by 0.05: what is learned is of the tasks"
    assert found(rows)["parting"].startswith(by_heart)
    assert held_out_change(rows[:-1]) is None, "nothing was measured in the last step"
    assert held_out_change(rows[:12] + rows[19:]) is None, "the windows would overlap"
    assert parting(PhaseHistory(rows, like_training=False), LIMITS) is None, "greedy ones need not rise with sampled ones"
    assert found(measured((0.4, 0.62), (0.4, 0.62))) == {}, "half as much is what a new task may give"
    assert found(measured((0.4, 0.45), (0.4, 0.45), reward__overlong=(-0.4, 0.0))) == {}, "what rose is the penalty of training alone"


def test_success_on_held_out_tasks_that_falls_while_training_earns_more() -> None:
    rows = measured((0.4, 0.8), (0.6, 0.2))
    text = "since step 5, reward rose by 0.4 in training, and on 50 held-out tasks success fell by 40 points"
    assert found(rows) == {"parting": text} == {"parting": parting(PhaseHistory(rows, like_training=False), LIMITS)}
    assert found(measured((0.4, 0.8), (0.5, 0.4))) == {}, "ten points of 50 tasks are noise"


@pytest.mark.parametrize("sampled", [True, False])
def test_the_guards_know_whether_held_out_tasks_are_sampled(tmp_path: Path, sampled: bool) -> None:
    recipe = resolve(config_from_data({**WHAT, "rft": {"steps": 4}, "evaluation": {"every": 2, "sampled": sampled}}))
    assert watch_over(recipe, RunFolder(tmp_path), "rft", 0, None).like_training is sampled


def test_turns_tools_and_lengths_that_drift() -> None:
    assert found(ramp("episode/turns", 2.0, 5.0)) == {"drift": "turns per episode went from 2 to 5, and success has not risen"}
    assert found(ramp("episode/tool_calls", 3.0, 1.0))["drift"].startswith("tool calls per episode went from 3 to 1")
    assert found(ramp("episode/tokens", 20.0, 30.0)) == {}


def test_a_phrase_that_spreads() -> None:
    plain = answers_of([episode(i, f"the answer is {i}") for i in range(10)], "ok")
    hacked = answers_of([episode(i, f"the answer is {i} as a careful expert") for i in range(10)], "ok")
    assert plain.phrases["the answer is"] == 1.0
    assert spread_phrase([plain] * 3, hacked, 0.2, 0.8) == "as a careful expert"
    assert spread_phrase([plain] * 3, plain, 0.2, 0.8) is None, "a template's phrase was there from the start"
    rows = [step()] * 9
    assert found(rows, [plain] * 3, [plain, hacked, hacked])["repeats"].startswith(
        "100% of the answers have come to say 'as a careful expert'"
    )
    risen = ramp("success", 0.2, 0.7)
    assert found(risen, [plain] * 3, [hacked] * 3) == {}, "the policy learned to answer, and answers alike in form"


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 399, 400, 401, 1000])
def test_phrases_are_of_words_near_the_ends_of_a_text(count: int) -> None:
    words = [f"w{i}" for i in range(count)]
    assert near_words(" ".join(words)) == near_words(f" \n{'  '.join(words)}\t ") == [*words[:200], *words[200:][-200:]]


def test_what_phrases_take_does_not_grow_with_the_text() -> None:
    tracemalloc.start()
    shares = phrase_shares([" ".join(f"{i:05}" * 2_000 for i in range(WORDS)), "ab " * 1_000_000])
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(map(len, shares)) == LONGEST * (LETTERS + 1) - 1 and shares["ab ab"] == 0.5
    assert held < 16 << 20, "texts of 4 and 3 MB, and what is kept of them"


def test_answers_that_repeat_themselves() -> None:
    plain = answers_of([episode(0, "one two three four five six seven eight")], "ok")
    loops = answers_of([episode(0, "a b c d " * 20)], "ok")
    assert plain.repeated == 0.0 and loops.repeated == pytest.approx(1 - 4 / 77)
    assert (
        "repeats itself" in found([step()], [plain] * 3, [loops] * 3)["repeats"]
        or "come to say" in found([step()], [plain] * 3, [loops] * 3)["repeats"]
    )


def labelled(predicted: Sequence[str], expected: Sequence[str]) -> Answers:
    pairs = zip(predicted, expected, strict=True)
    return answers_of([episode(i, said, labels={"expected": truth, "predicted": said}) for i, (said, truth) in enumerate(pairs)], "ok")


def test_a_policy_that_always_says_the_same_label_is_a_constant() -> None:
    truths = ["pass"] * 10 + ["scrap"] * 10
    same = labelled(["pass"] * 20, truths)
    assert constant([same] * 2) is None, "three steps in a row"
    assert constant([same] * 3) == "says 'pass' in 60 of 60 episodes, though 10 tasks asked for something else"
    assert constant([same, same, labelled(["pass"] * 18 + ["scrap"] * 2, truths)]) is None
    right = labelled(["pass"] * 20, ["pass"] * 15 + ["scrap"] * 5)
    assert constant([right] * 3) is None, "too few tasks asked for anything else to say so"
    mute = answers_of([episode(i, "?", labels={"expected": "pass"}) for i in range(8)], "ok")
    assert constant([mute] * 3) == "gives no answer that can be read in 24 of 24 episodes, though 8 tasks asked for something else"


def test_without_labels_the_words_of_the_whole_episode_count() -> None:
    same = answers_of([episode(i, "I do not know", success=0.1) for i in range(10)], "ok")
    assert constant([same] * 3) == "says the same words in 30 of 30 episodes, over 10 different tasks"
    one_prompt = answers_of([episode(i, "go", prompt="ready?") for i in range(10)], "ok")
    assert constant([one_prompt] * 3) is None, "the tasks look alike"
    solved = answers_of([episode(i, "done", success=1.0) for i in range(10)], "ok")
    assert constant([solved] * 3) is None, "the words are right"
    assert constant([answers_of([episode(i, f"{i}") for i in range(10)], "ok")] * 3) is None


def test_a_warning_is_said_once_in_a_while_and_a_stop_at_once() -> None:
    watch = Watch(GuardsConfig(empty="warn"), "ok")
    alarms = [alarm for n in range(1, 3 + QUIET) for alarm in watch.after(n, step(groups_trained=0.0), [])]
    assert [(alarm.guard, alarm.step) for alarm in alarms] == [("empty", 2), ("empty", 2 + QUIET)]
    off, stops = Watch(GuardsConfig(empty="off"), "ok"), Watch(GuardsConfig(empty="stop"), "ok")
    assert [off.after(n, step(groups_trained=0.0), []) for n in range(1, 6)] == [[]] * 5
    assert [len(stops.after(n, step(groups_trained=0.0), [])) for n in range(1, 5)] == [0, 1, 1, 1]


def test_a_watch_goes_on_from_what_a_checkpoint_kept() -> None:
    def watched(watch: Watch, start: int, end: int) -> list[Alarm]:
        said = [[episode(i, f"{i} please" if n > 4 else f"{i}") for i in range(10)] for n in range(20)]
        return [alarm for n in range(start, end) for alarm in watch.after(n, step(groups_trained=0.0), said[n])]

    whole, halves = Watch(LIMITS, "ok"), Watch(LIMITS, "ok")
    at_once, first = watched(whole, 1, 16), watched(halves, 1, 8)
    resumed = Watch(LIMITS, "ok")
    resumed.restore(halves.row(), halves.rows)
    assert [*first, *watched(resumed, 8, 16)] == at_once
    assert {alarm.guard for alarm in at_once} == {"empty", "repeats"}


def test_alarms_are_stored_said_and_heeded(tmp_path: Path) -> None:
    folder, console = create_run(resolve(config_from_data(WHAT)), run_dir=tmp_path / "run"), Console(record=True)
    heed(folder, console, "rft", [Alarm("drift", "warn", 3, "turns went up")])
    assert "step 3: guard drift: turns went up" in console.export_text()
    for times in range(2):
        with pytest.raises(RollBack) as back:
            heed(folder, console, "rft", [Alarm("entropy", "roll_back", 4, "it fell"), Alarm("kl", "roll_back", 4, "far")][: times + 1])
        if not times:
            folder.log_roll_back(back.value.row(8))
    with pytest.raises(GuardStop, match=r'guards\.empty = "stop" ends the run'):
        heed(folder, console, "rft", [Alarm("entropy", "roll_back", 5, "it fell"), Alarm("empty", "stop", 5, "nothing")])
    assert [(row.step, row.guard, row.action) for row in read_run(folder.path).alarms] == [
        (3, "drift", "warn"), (4, "entropy", "roll_back"), (4, "entropy", "roll_back"), (4, "kl", "roll_back"),
        (5, "entropy", "roll_back"), (5, "empty", "stop"),
    ]  # fmt: skip
    folder.rewind(("rft",), "rft", 3)
    left = [(row.step, row.action) for row in read_run(folder.path).alarms]
    assert left == [(3, "warn"), (4, "roll_back")], "what the run went back for stays known, and not what is done again"


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"guards": {"kl_max": 0.1}}, "guards.kl_max: no KL to a reference is measured"),
        ({"guards": {"kl": "stop"}}, "guards.kl: no KL to a reference is measured"),
        ({"guards": {"drift": "stop"}, "sft": {"steps": 1, "generate": "a.b:c"}}, r"guards.drift: has no effect without \[rft\]"),
        ({"guards": {"drift": "off", "drift_factor": 3.0}}, r'guards\.drift_factor: has no effect with guards\.drift = "off"'),
        ({"guards": {"repeats": "off", "phrase_share": 0.9}}, r'guards\.phrase_share: has no effect with guards\.repeats = "off"'),
        ({"guards": {"kl": "off", "kl_max": 0.1}}, r'guards\.kl_max: has no effect with guards\.kl = "off"'),
        ({"guards": {"entropy": "off", "entropy_low": 0.2}}, r'guards\.entropy_low: has no effect with guards\.entropy = "off"'),
        ({"guards": {"entropy": "off", "entropy_high": 2.0}}, r'guards\.entropy_high: has no effect with guards\.entropy = "off"'),
        ({"guards": {"drift": "stop", "roll_backs": 3}}, r'guards\.roll_backs: has no effect where no guard is "roll_back"'),
        ({"guards": {"non_finite": "roll_back"}}, "guards.non_finite: 'roll_back' must be 'off', 'warn' or 'stop'"),
        ({"guards": {"parting": "halt"}}, "guards.parting: 'halt' must be"),
    ],
)
def test_what_cannot_have_an_effect_is_refused(tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config_from_data({**WHAT, **tables})


def test_every_guard_has_a_rule_and_a_key() -> None:
    kinds: list[Kind] = list(RULES)
    assert set(kinds) < GuardsConfig.model_fields.keys()
    config_from_data({**WHAT, "guards": {"kl": "roll_back", "kl_max": 0.1, "roll_backs": 3}, "rft": {"objective": {"kl_coef": 0.01}}})


def test_docs_its_recipe_is_read() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "guards.md").read_text()
    (table,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    config = config_from_data({**WHAT, **tomllib.loads(table)})
    assert (config.guards.parting, config.guards.entropy, config.guards.drift, config.guards.kl_max) == ("stop", "roll_back", "off", 0.1)
    assert {f"| `{guard}` |" in page for guard in RULES} == {True}
