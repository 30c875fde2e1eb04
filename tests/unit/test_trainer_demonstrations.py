"""Demonstrations beside the policy loss: how many, which, that the gradient is the sum of both, by hand, and that they are kept to."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.one_step import make_policy
from tests.unit.scripted import ScriptedLearner
from tests.unit.test_recorded_steps import SIZE, TEXTS

from burnish.cli.data import blends, trace
from burnish.envs.types import Episode, EpisodeGroup, Float32, Message, Reward, Task, Trajectory
from burnish.recipe.checks import file_problems
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.session import making_of
from burnish.trainer.batch import GroupBatch, TokenBatch
from burnish.trainer.data.prepared import PreparedData
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.demonstrations import Demonstrations
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.importing import new_model
from burnish.trainer.objectives.advantages import grpo
from burnish.trainer.objectives.config import ObjectiveConfig
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import CROSS_ENTROPY, Objective, objective_of
from burnish.trainer.phases.common import Spent
from burnish.trainer.phases.rft import RFTPhaseConfig, lay_out_replay
from burnish.trainer.updates import Updates

pytestmark = pytest.mark.unit


def example(*ids: int) -> SupervisedExample:
    mask = np.ones(len(ids), bool)
    mask[0] = False
    return SupervisedExample(np.array(ids, np.int32), mask)


class Listed:
    """Three examples, over and over."""

    rows = (example(20, 30, 40), example(21, 31), example(22, 32, 42, 52))

    def at(self, positions: range) -> Sequence[SupervisedExample]:
        return [self.rows[position % 3] for position in positions]

    def shares(self, samples: int) -> dict[str, float]:
        return {}

    def taught(self, samples: int) -> dict[str, int]:
        return {}

    def blend_lines(self, phase: str, samples: int) -> Iterator[str]:
        return iter(())


@pytest.mark.parametrize("share", [Fraction(1, 5), Fraction(1, 3), Fraction(3, 100), Fraction(9, 10)])
def test_the_share_is_kept_after_every_update_whatever_its_size(share: Fraction) -> None:
    """After each update there are the demonstrations that the share asks for to within one; none is skipped, and none comes twice."""
    shown, learner = Demonstrations(Listed(), 0.5, share), ScriptedLearner()
    sequences, firsts = 0, list[int]()
    for size in np.random.default_rng(3).integers(1, 70, 60):
        learner.batches.clear()
        learning = shown.begun(sequences)
        learning.beside(learner, int(size))
        sequences += int(size)
        assert learning.metrics["replay_sequences"] == sum(len(batch.lengths) for batch in learner.batches)
        firsts += [int(batch.token_ids[at]) for batch in learner.batches for at in batch.offsets[:-1]]
        assert abs(len(firsts) - share / (1 - share) * sequences) < 1
        assert shown.metrics(sequences)["replay_share"] == len(firsts) / (len(firsts) + sequences)
    assert firsts == [20 + position % 3 for position in range(len(firsts))]
    assert shown.metrics(sequences) == {"replay_position": len(firsts), "replay_share": pytest.approx(float(share), abs=1 / sequences)}


def test_a_fifth_beside_64_episodes_are_16() -> None:
    shown = Demonstrations(Listed(), 0.1, Fraction(1, 5))
    assert [shown.positions(64 * step, 64 * step + 64) for step in range(2)] == [range(16), range(16, 32)]


def test_only_what_is_trained_of_a_demonstration_is_learned_with_the_weight() -> None:
    learner = ScriptedLearner()
    Demonstrations(Listed(), 0.25, Fraction(1, 2)).begun(0).beside(learner, 3)
    (batch,) = learner.batches
    assert batch.tokens == 2 + 1 + 3
    assert set(batch.weights[batch.mask]) == {np.float32(0.25)} and not batch.weights[~batch.mask].any()
    assert CROSS_ENTROPY.scale(batch, "token")[batch.mask] == pytest.approx([0.25 / 6] * 6), "weight x mean over the trained tokens"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "demonstrations"
    new_model(TEXTS, folder, SIZE)
    return folder


def group() -> EpisodeGroup:
    """Three episodes of one task, of which the first is the best."""
    task = Task("t-0", 0)

    def episode(sample: int, reward: float) -> Episode:
        ids, mask = np.array([50, 60 + sample, 70], np.int32), np.array([False, True, True])
        trajectory = Trajectory(ids, mask, np.where(mask, -5.0, 0.0).astype(np.float32), np.where(mask, 0, -1).astype(np.int32))
        return Episode(task, sample, (trajectory,), (Message("user", "?"),), Reward(reward), engine="e")

    return EpisodeGroup(task, (episode(0, 1.0), episode(1, 0.0), episode(2, 0.0)))


def policy_batch() -> TokenBatch:
    credited = GroupBatch((group(),))
    advantages: Float32 = grpo(credited)
    return credited.train(advantages)


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in learner.policy.model.named_parameters() if value.grad is not None}


def updates(shown: Demonstrations | None, **phase: Any) -> Updates:
    table = RFTPhaseConfig(groups_per_step=1, group_size=3, lr=1e-3, **phase)
    asked = table.objective.within(4)
    return Updates(grpo, asked, objective_of(asked, 1.0, table.updates), table, 1.0, shown)


def test_the_gradient_is_the_policys_and_weight_times_that_of_cross_entropy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the sequences: three demonstrations beside three episodes. The gradient that the step finds is taken apart by hand."""
    make = partial(Learner, model, LearnerConfig(threads=1), seed=3)
    both, policy, demos = make(), make(), make()
    found = dict[str, torch.Tensor]()

    def step(scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        found.update(gradients(both))
        return Learner.step(both, scale, phase_step)

    monkeypatch.setattr(both, "step", step)
    shown = Demonstrations(Listed(), 0.3, Fraction(1, 2))
    learned = updates(shown, objective=ObjectiveConfig(loss="importance")).learn(both, (group(),), 0, lambda batch, measured: None, False)
    policy.forward_backward(policy_batch(), Objective("importance"))
    token_ids = np.concatenate([one.token_ids for one in Listed.rows])
    batch = learned_alone()
    assert batch.token_ids.tolist() == token_ids.tolist()
    nll = -demos.forward_backward(batch, CROSS_ENTROPY).logprobs[batch.mask].mean()
    assert learned.sequences == 3
    assert {name: value for name, value in learned.metrics.items() if name.startswith("replay")} == {
        "replay_sequences": 3.0,
        "replay_tokens": 6.0,
        "replay_loss": pytest.approx(float(nll), rel=1e-5),
    }
    alone, beside = gradients(policy), gradients(demos)
    assert sum(float(value.abs().sum()) for value in beside.values()) > 0.1
    for name, value in found.items():
        expected = alone.get(name, torch.zeros_like(value)) + 0.3 * beside.get(name, torch.zeros_like(value))
        assert torch.allclose(value, expected, atol=1e-6), name


def learned_alone() -> TokenBatch:
    learner = ScriptedLearner()
    Demonstrations(Listed(), 1.0, Fraction(1, 2)).begun(0).beside(learner, 3)
    return learner.batches[0]


def test_each_update_of_a_step_has_its_own() -> None:
    """Two epochs over three episodes, a quarter of demonstrations: one beside each, and the second epoch has another."""
    learner = ScriptedLearner()
    learned = updates(Demonstrations(Listed(), 0.5, Fraction(1, 4)), epochs=2).learn(learner, (group(),), 0, lambda *_: None, False, 6)
    assert [len(batch.lengths) for batch in learner.batches] == [3, 1, 3, 1]
    assert [int(batch.token_ids[0]) for batch in learner.batches[1::2]] == [22, 20], "six sequences before had had two"
    assert (learned.sequences, learned.metrics["replay_sequences"]) == (6, 2.0)


def test_a_demonstration_that_fails_leaves_no_half_of_a_gradient() -> None:
    class Broken(ScriptedLearner):
        discarded = False

        def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
            if objective is CROSS_ENTROPY:
                raise RuntimeError("no memory")
            return super().forward_backward(batch, objective)

        def discard(self) -> None:
            self.discarded = True

    learner = Broken()
    with pytest.raises(RuntimeError, match="no memory"):
        updates(Demonstrations(Listed(), 0.5, Fraction(1, 2))).learn(learner, (group(),), 0, lambda *_: None, False)
    assert learner.discarded and learner.steps == 0


def test_a_budget_of_tokens_counts_them() -> None:
    spent = Spent()
    spent.add({"learner/tokens": 90.0, "learner/replay_tokens": 30.0})
    assert spent.tokens == 120 and spent.reached(RFTPhaseConfig(max_tokens=120)) == "max_tokens"


def talk(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"part {number} bore"}, {"role": "assistant", "content": "pass"}]}


def recipe(folder: Path, **replay: Any) -> dict[str, Any]:
    model = folder / "policy"
    if not model.is_dir():
        make_policy(model)
        (folder / "demos.jsonl").write_text("".join(json.dumps(talk(number)) + "\n" for number in range(5)))
    base = {"name": "r", "model": str(model), "environment": "burnish/Arithmetic-v0", "platform": "cpu", "evaluation": {"tasks": 2}}
    limits = {"rollout": {"max_tokens_per_turn": 6}, "engine": {"max_context": 128}}
    return {**base, **limits, "rft": {"steps": 4, "groups_per_step": 2, "group_size": 4, "lr": 1e-4, "replay": replay}}


def test_a_table_reads_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_from_data(recipe(tmp_path, data="demos.jsonl", share=0.25))
    assert config.rft is not None and config.rft.replay is not None
    assert (config.rft.replay.weight, config.rft.replay.share) == (0.1, 0.25)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data": "demos.jsonl", "share": 1.0}, "share"),
        ({"data": "demos.jsonl", "weight": 0}, "weight"),
        ({"data": "demos.jsonl", "batch": 4}, "batch"),
        ({"own": "demos.jsonl"}, "own has no effect without a blend"),
        ({}, "needs exactly one of data"),
        ({"data": "demos.bin"}, "bin"),
    ]
    for table, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            config_from_data(recipe(tmp_path, **table))
    other = config_from_data({**recipe(tmp_path, data="demos.jsonl"), "rft": {"replay": {"data": "demos.jsonl"}}})
    Path("demos.jsonl").unlink()
    assert file_problems(other) == ["rft.replay.data: demos.jsonl is not there"]


def test_a_plan_reads_every_row_and_says_what_is_learned_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(resolve(config_from_data(recipe(tmp_path, data="demos.jsonl", share=0.2))))
    (phase,) = [one for one in plan.phases if one.name == "rft"]
    assert (
        ", beside 8 demonstrations of about " in phase.work and "(20% of what is learned from, weight 0.1), from demos.jsonl" in phase.work
    )
    without = make_plan(
        resolve(config_from_data({**recipe(tmp_path), "rft": {"steps": 4, "groups_per_step": 2, "group_size": 4, "lr": 1e-4}}))
    )
    (bare,) = [one for one in without.phases if one.name == "rft"]
    assert phase.trained_tokens > bare.trained_tokens and phase.seconds is not None and bare.seconds is not None
    assert phase.seconds > bare.seconds
    Path("demos.jsonl").write_text(json.dumps(talk(0)) + "\n" + json.dumps({"messages": [{"role": "boss", "content": "do"}]}) + "\n")
    with pytest.raises(ValueError, match=r"demos.jsonl:2: messages\[0\]"):
        make_plan(resolve(config_from_data(recipe(tmp_path, data="demos.jsonl"))))


def test_a_generator_and_a_catalog_are_looked_for_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"rft\.replay\.generate"):
        check_components(resolve(config_from_data(recipe(tmp_path, generate="nowhere:talks"))))
    with pytest.raises(ValueError, match=r"rft\.replay: .*my-team/none-v1"):
        blended = {"own": "demos.jsonl", "blend_ratio": 0.5, "curated": "my-team/none-v1"}
        check_components(resolve(config_from_data(recipe(tmp_path, **blended))))


def test_the_rows_of_a_step_are_traced_from_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blend of own and curated rows: the second step, whose groups were few, learned those at positions 2 to 4; the third none."""
    monkeypatch.chdir(tmp_path)
    data = recipe(tmp_path, own="demos.jsonl", blend={"own_percent": 50, "curated": {"refusal": 100}})
    data["engine"] = {"max_context": 256}
    (tmp_path / "recipe.toml").write_text(tomllib_text(data))
    found = blends(tmp_path / "recipe.toml", ())
    assert any(line.startswith("[rft.replay] 8 samples") for line in found.lines)
    (blend,) = json.loads(json.dumps(found.data))
    assert (blend["phase"], blend["samples"], [one["name"] for one in blend["sources"]]) == ("rft.replay", 8, ["own", "refusal"])
    run = resolve(config_from_data(data))
    assert run.rft is not None
    home = tmp_path / "run"
    (home / "transcripts").mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(run.record))
    rows = [{"phase": "rft", "step": step, "time": 1.0, "replay_position": at} for step, at in ((1, 2), (2, 5), (3, 5))]
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    laid_out = lay_out_replay(run.rft, making_of(run, run.rft, {"run": 7}), home / "data" / "rft", lambda text: None)
    assert isinstance(laid_out, PreparedData)
    expected = [one.where for one in laid_out.drawn_at(range(2, 5))]
    laid_out.close()
    traced = trace(home, 2, None)
    said = traced.lines
    assert ([row["position"] for row in traced.data["rows"]], traced.data["rollouts"]) == ([2, 3, 4], [])
    assert said[0] == "rft step 2: 0 rollouts"
    at = said.index("rft replay step 2: positions 2 to 4 of the blend")
    assert [line.split()[0] for line in said[at + 2 :]] == ["2", "3", "4"]
    assert all(where in line for where, line in zip(expected, said[at + 2 :], strict=True))
    assert trace(home, 3, None).lines[-1] == "rft replay step 3: none"
    wrong = {1.0: "goes from 2 to 1", -1.0: "to -1", 1e300: r"to 1e\+300", 2.0**53: "rows take more than"}
    for position, problem in wrong.items():
        rows[1]["replay_position"] = position
        (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr("burnish.cli.data.MOST_TRACED", 5000)
        with pytest.raises(ValueError, match=problem):
            trace(home, 2, None)


def tomllib_text(data: dict[str, Any]) -> str:
    """The plain tables of a recipe as TOML, read back to be sure."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, dict)]

    def table(name: str, values: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                table(f"{name}.{key}", value)

    for key, value in data.items():
        if isinstance(value, dict):
            table(key, value)
    text = "\n".join(lines)
    assert tomllib.loads(text) == data
    return text
