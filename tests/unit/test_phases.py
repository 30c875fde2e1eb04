"""Phases in any order and number: how a recipe says them, what each kind does, and how one ends before its last step."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.unit.paper_model import write_paper_model
from tests.unit.phase_parts import on
from tests.unit.scripted import ScriptedLearner
from transformers import AutoModelForCausalLM

from burnish.envs.types import Message
from burnish.recipe.load import config_data, config_from_data, without_defaults
from burnish.recipe.overrides import parse_override
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.recipe.seeds import derive_seeds, phase_seed
from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.tokenizer import load_tokenizer
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.data.config import Making
from burnish.trainer.data.forms import Preference
from burnish.trainer.data.pairs import PairData, lay_out, pair_examples
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.folder import Origin, write_manifest, write_model_folder
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.models.manifest import STAGES, Stage
from burnish.trainer.objectives.losses import LossInputs, dpo
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import CROSS_ENTROPY, Objective
from burnish.trainer.phases.common import PhaseStep, Playing, Spent, phase_optimizer
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.dpo import DPO, DPOConfig, dpo_step, dpo_steps, pair_batch
from burnish.trainer.phases.examples import lay_out_examples
from burnish.trainer.phases.midtrain import MidtrainConfig
from burnish.trainer.phases.registry import KINDS
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.phases.sft import SFTConfig
from burnish.trainer.phases.supervised import example_batch, out_of_patience, supervised_steps
from burnish.trainer.phases.transitions import TRANSITIONS, doubts, transition_table

pytestmark = pytest.mark.unit

WHAT: dict[str, Any] = {"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0", "platform": "cpu"}
GENERATED = {"steps": 4, "generate": "m:f"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=128)
    new_model(["what is two plus two? it is four, I believe."] * 9, folder, size)
    return folder


@pytest.fixture
def learner(model: Path) -> Learner:
    return Learner(model, LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=1e-2)), seed=0)


def listed(*phases: dict[str, Any]) -> dict[str, Any]:
    return {**WHAT, "phases": list(phases)}


def held_out(**asked: Any) -> dict[str, Any]:
    return listed({"kind": "sft", "steps": 10, "data": "t.jsonl", "held_out": "h.jsonl", **asked})


# How a recipe says them


def test_phases_run_in_the_order_of_the_list_as_often_as_it_says() -> None:
    config = config_from_data(listed({"kind": "sft", **GENERATED}, {"kind": "rft"}, {"kind": "sft", "name": "again", **GENERATED}))
    run = resolve(config)
    assert [(phase.name, phase.kind.kind, phase.kind.stage) for phase in run.phases] == [
        ("sft", "sft", "sft"),
        ("rft", "rft", "rft"),
        ("again", "sft", "sft"),
    ]
    assert config_from_data(without_defaults(config_data(config), type(config))) == config


def test_a_plain_table_is_the_short_form_of_one_entry() -> None:
    plain, long = ({**WHAT, "sft": GENERATED}, listed({"kind": "sft", **GENERATED}))
    assert resolve(config_from_data(plain)).phases == resolve(config_from_data(long)).phases


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (listed({"kind": "sft", **GENERATED}, {"kind": "sft", **GENERATED}), r"phases: 2 of them are called 'sft'; give each another name"),
        ({**listed({"kind": "rft"}), "sft": GENERATED}, r"sft: has no place beside \[\[phases\]\]"),
        (listed({"steps": 3}), r"phases.0: needs a kind"),
        (listed({"kind": "stf", **GENERATED}), r"phases.0: kind 'stf' is unknown; did you mean 'sft'"),
        (listed({"kind": "sft", **GENERATED, "stepps": 3}), r"phases.0.stepps: unknown key; did you mean 'steps'"),
        (listed({"kind": "rft", "lr": "high"}), r"phases.0.lr: must be a number, not string 'high'"),
        (listed({"kind": "sft", **GENERATED, "name": "base"}), r"phases.0: name 'base' is taken"),
        (listed({"kind": "sft", **GENERATED, "name": "Two"}), r"phases.0.name: 'Two' must be made of lower-case letters"),
        (listed({"kind": "sft", **GENERATED, "patience": 2}), r"phases.0: patience has no effect without held_out"),
        (listed({"kind": "sft", **GENERATED, "keep_best": True}), r"phases.0: keep_best has no effect without held_out"),
        (held_out(held_out_every=11), r"phases.0: held_out_every = 11 of 10 steps is never reached; lower it, to 10"),
        (
            held_out(held_out_every=5, patience=2),
            r"phases.0: patience = 2 has no effect: held_out_every = 5 of 10 steps give 1 measurement",
        ),
        (held_out(patience=1), r"phases.0: patience = 1 has no effect: held_out_every = 50 of 10 steps give 0 measurement"),
        (held_out(keep_best=True), r"phases.0: keep_best has no effect: held_out_every = 50 of 10 steps leave only the last weights"),
        (listed({"kind": "dpo", "steps": 3, "data": "nowhere.jsonl"}), r"dpo.data: nowhere.jsonl is not there"),
        (listed({"kind": "rft", "objective": {"loss": "dpo"}}), r'use a phase of kind "dpo"'),
    ],
)
def test_what_is_wrong_with_a_phase_is_named_where_it_is_written(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_data(data)


def test_held_out_rows_may_be_measured_first_and_last_alone_or_just_often_enough() -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"held_out_every": 10},
        {"held_out_every": 9, "patience": 1},
        {"held_out_every": 9, "keep_best": True},
    ]
    for one in asked:
        assert SFTConfig(steps=10, data="t.jsonl", held_out="h.jsonl", **one).steps == 10


def test_an_override_names_an_entry_by_its_name_or_kind() -> None:
    data = listed({"kind": "sft", **GENERATED}, {"kind": "sft", "name": "again", **GENERATED})
    overrides = [parse_override("phases.again.lr=0.5"), parse_override("phases.sft.steps=9")]
    first, second = config_from_data(data, overrides=overrides).tables
    assert (first.steps, second.lr) == (9, 0.5)


def test_a_phase_of_any_name_has_seeds_of_its_own() -> None:
    seeds = derive_seeds(3)
    assert phase_seed(seeds, "sft.order") == seeds["sft.order"]
    assert len({phase_seed(seeds, f"{name}.order") for name in ("sft", "again", "more")}) == 3
    assert phase_seed(seeds, "again.order") == phase_seed(derive_seeds(3), "again.order")


def test_a_phase_trains_adapters_of_its_own_or_all_weights() -> None:
    """Those of the learner's table go on from phase to phase; one with a word of its own begins from merged weights, and so does what
    follows it."""
    own = {"rank": 2, "alpha": 8, "targets": ["q_proj"]}
    lists: list[dict[str, Any]] = [
        {"kind": "cpt", "steps": 1, "generate": "m:f"},
        {"kind": "midtrain", "steps": 1, "generate": "m:f"},
        {"kind": "sft", **GENERATED, "lora": False},
        {"kind": "sft", "name": "again", **GENERATED, "lora": False},
        {"kind": "rft", "lora": own},
        {"kind": "rft", "name": "more"},
    ]
    config = config_from_data({**listed(*lists), "learner": {"lora": {"rank": 4}}})
    run = resolve(config_from_data(without_defaults(config_data(config), type(config))))
    ranks = [(phase.lora.rank if phase.lora else None, phase.merges) for phase in run.phases]
    assert ranks == [(4, False), (4, False), (None, True), (None, False), (2, True), (4, True)]
    assert run.learner.lora == LoRAConfig(rank=4) and run.beginning_with("rft").learner.lora == LoRAConfig(
        rank=2, alpha=8, targets=("q_proj",)
    )


@pytest.mark.parametrize("adapters", ["merged", "alone"])
def test_what_begins_with_a_phase_without_adapters_sends_none(adapters: str) -> None:
    lists: list[dict[str, Any]] = [{"kind": "sft", **GENERATED}, {"kind": "rft", "lora": False}]
    run = resolve(config_from_data({**listed(*lists), "learner": {"lora": {"rank": 4}}, "engine": {"adapters": adapters}}))
    later, same = run.beginning_with("rft"), run.beginning_with("sft")
    assert (later.learner.lora, later.engine.adapters) == (None, None)
    assert (same.learner.lora, same.engine.adapters) == (LoRAConfig(rank=4), adapters)


def adapted(kind: str, model: Path, folder: Path) -> Iterator[PhaseStep]:
    """Six steps of a phase of supervision or of pairs, each phase from what the one before has left in `folder`."""
    talks = [talk(f"what is {i}?", "it is four") for i in range(3)]
    found: dict[str, tuple[Any, list[dict[str, Any]]]] = {
        "cpt": (CPTConfig, [{"text": f"two plus two is {i}"} for i in range(3)]),
        "midtrain": (MidtrainConfig, [{"text": "two plus two"}, *talks]),
        "sft": (SFTConfig, talks),
        "dpo": (DPOConfig, [{"prompt": f"what is {i}?", "chosen": "it is four", "rejected": "two, I believe"} for i in range(3)]),
    }
    config, values = found[kind]
    table: Any = config(steps=6, batch=3, lr=1e-2, schedule="constant", data=rows(folder / f"{kind}.jsonl", *values))
    data = KINDS[table.kind].lay_out(table, Making(model, 128, {}, order=5), folder / kind, lambda text: None)
    learner = Learner(model, LearnerConfig(threads=1, lora=LoRAConfig(rank=2, alpha=4), optimizer=OptimizerConfig(lr=1e-2)), seed=0)
    yield from KINDS[table.kind].steps(on(learner), table, data)
    write_model_folder(learner.weights(), model, folder / f"after-{kind}", Origin(name=kind, stage="sft", source=kind))


def test_adapters_learn_in_every_kind_of_phase_and_the_next_begins_from_what_they_were_merged_into(model: Path, tmp_path: Path) -> None:
    """The loss falls; the linear layers of the decoder moved by a matrix of rank 2, and nothing else did."""
    begun = model
    for kind in ("cpt", "midtrain", "sft", "dpo"):
        losses = [step.metrics["loss"] for step in adapted(kind, begun, tmp_path)]
        assert len(losses) == 6 and losses[-1] < losses[0], kind
        before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (begun, tmp_path / f"after-{kind}"))
        moved = {name: torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) for name in before if "_proj" in name}
        assert 0 < max(moved.values()) <= 2 and len(moved) == 7, kind
        assert all(torch.equal(after[name], before[name]) for name in before.keys() - moved.keys()), kind
        begun = tmp_path / f"after-{kind}"


def test_every_kind_is_in_one_place() -> None:
    assert list(KINDS) == [one.kind for one in KINDS.values()] == ["cpt", "midtrain", "sft", "dpo", "rft"]
    assert all(one.table.model_fields["kind"].default == kind for kind, one in KINDS.items())


# The learning rate


def test_a_continued_training_warms_up_and_decays_unless_the_recipe_says_otherwise() -> None:
    table = SFTConfig(steps=60, lr=0.5, generate="m:f")
    optimizer = phase_optimizer(OptimizerConfig(), table)
    assert (table.warmup, optimizer.warmup_steps, optimizer.schedule, optimizer.total_steps) == (3, 3, "cosine", 60)
    assert SFTConfig(steps=10_000, generate="m:f").warmup == 100
    assert SFTConfig(steps=1, generate="m:f").warmup == 0
    assert SFTConfig(steps=60, schedule="constant", generate="m:f").warmup == 0
    assert SFTConfig(steps=60, warmup_steps=7, generate="m:f").warmup == 7
    assert (RFTPhaseConfig().schedule, RFTPhaseConfig().warmup) == ("constant", 0)


# What ends one


def test_a_budget_is_counted_over_the_steps_of_the_phase() -> None:
    table = SFTConfig(steps=9, generate="m:f", max_tokens=100, max_minutes=0.5)
    spent = Spent()
    spent.add({"tokens": 60.0, "seconds": 20.0})
    assert spent.reached(table) == ""
    spent.add({"tokens": 40.0, "seconds": 1.0})
    assert spent.reached(table) == "max_tokens"
    assert Spent(seconds=30.0).reached(table) == "max_minutes"
    played = Spent()
    played.add({"step_seconds": 31.0, "learner/seconds": 2.0, "learner/tokens": 5.0})
    assert (played.seconds, played.tokens) == (31.0, 5.0), "of a step of reinforcement, the whole step"


@pytest.mark.parametrize(
    ("losses", "patience", "out"),
    [([3.0, 2.0, 2.1, 2.0], 2, True), ([3.0, 2.0, 2.1, 1.9], 2, False), ([3.0, 3.0], 2, False), ([1.0, 2.0, 3.0], None, False)],
)
def test_patience_is_out_when_nothing_got_better_for_so_long(losses: list[float], patience: int | None, out: bool) -> None:
    assert out_of_patience(losses, patience) is out


def rows(file: Path, *values: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(file)


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


class SomeNotFinite(ScriptedLearner):
    """The loss of the steps at some places of the phase is not a number, however often they are tried. first: the place it begins at."""

    def __init__(self, places: Sequence[int], first: int = 0) -> None:
        super().__init__()
        self.refused, self.first = places, first

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        found, nothing = super().forward_backward(batch, objective), np.zeros(len(batch.mask), np.float32)
        loss = math.nan if self.first + len(self.batches) - 1 in self.refused else 1.0
        return replace(found, terms={"loss": loss}, tokens={"margin": nothing, "preferred": nothing}, seconds=0.5)

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        if phase_step in self.refused:
            raise FloatingPointError("was not applied")
        return super().step(scale, phase_step)


class Scores(SomeNotFinite):
    """Its loss on held-out rows is 1."""

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        return replace(super().score(batch, temperature, reference), terms={"loss": 1.0})


def taken(kind: str, learner: ScriptedLearner, model: Path, done: Sequence[Mapping[str, float]] = ()) -> Iterator[PhaseStep]:
    """Steps of a supervised phase, or of one on pairs, six in all."""
    if kind == "dpo":
        pairs = cast(Any, SimpleNamespace(pairs=lambda step: pairs_of(model), metrics=lambda step, pairs: {}))
        return dpo_steps(on(learner, done), DPOConfig(steps=6, data="p.jsonl"), pairs)
    examples = [SupervisedExample(np.array([1, 2, 3], np.int32), np.array([False, True, True]))]
    data = cast(Any, SimpleNamespace(held_out=(), examples=lambda step: examples, metrics=lambda step, examples: {"epoch": 1.0}))
    return supervised_steps(on(learner, done), SFTConfig(steps=6, data="t.jsonl", batch=1), data)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_an_update_that_is_not_finite_is_left_out_and_a_third_in_a_row_ends_the_run(kind: str, model: Path) -> None:
    learner = SomeNotFinite([1, 2, 4])
    steps = list(taken(kind, learner, model))
    assert [step.step for step in steps if "updates_skipped" in step.metrics] == [2, 3, 5]
    assert learner.version == 3 and learner.places == [0, 3, 5], "the rate follows the steps, not the updates made"
    row = steps[1].metrics
    assert row["updates_skipped"] == 1.0 and row["seconds"] == 0.5 and row["tokens"] > 0
    assert "loss" not in row and "grad_norm" not in row, "what is not finite has no place in a row of numbers"
    assert all(math.isfinite(value) for value in row.values())
    assert steps[1].line.startswith("the update was not finite, and is left out")
    with pytest.raises(FloatingPointError, match="was not applied"):
        list(taken(kind, SomeNotFinite([1, 2, 3]), model))
    done = [step.metrics for step in steps[:3]]
    assert [step.step for step in taken(kind, SomeNotFinite([4], first=3), model, done)] == [4, 5, 6]
    with pytest.raises(FloatingPointError, match="was not applied"):  # a resume counts what was left out before it
        next(taken(kind, SomeNotFinite([3], first=3), model, done))


@pytest.mark.parametrize("budget", [{"max_tokens": 14}, {"max_minutes": 7 / 120}])
def test_the_held_out_loss_is_measured_after_the_step_with_which_a_budget_ends_the_phase(budget: dict[str, Any]) -> None:
    """A step trains two tokens in half a second, so the seventh is the last, also of a run that is resumed after the fifth."""
    examples = [SupervisedExample(np.array([1, 2, 3], np.int32), np.array([False, True, True]))]
    data = cast(Any, SimpleNamespace(held_out=examples, examples=lambda step: examples, metrics=lambda step, examples: {}))
    table = SFTConfig(steps=40, data="t.jsonl", batch=1, held_out="h.jsonl", held_out_every=5, **budget)
    done: list[dict[str, float]] = []
    for first in (0, 5):
        spent, done = Spent(), done[:first]
        for row in done:
            spent.add(row)
        for step in supervised_steps(on(Scores([]), done), table, data):
            done.append(dict(step.metrics))
            spent.add(step.metrics)
            if spent.reached(table):
                break
        assert [number for number, row in enumerate(done, 1) if "held_out_loss" in row] == [5, 7] and len(done) == 7


def test_a_held_out_loss_is_measured_on_the_way_and_ends_a_phase_that_no_longer_gains(
    model: Path, learner: Learner, tmp_path: Path
) -> None:
    """What is trained says the opposite of what is held out, so its loss must rise."""
    train = rows(tmp_path / "train.jsonl", *(talk("what is it?", "four four four") for _ in range(4)))
    held_out = rows(tmp_path / "held.jsonl", talk("what is it?", "I believe it is two"))
    asked: dict[str, Any] = {"steps": 40, "lr": 0.05, "batch": 4, "schedule": "constant", "data": train, "held_out": held_out}
    table = SFTConfig(**asked, held_out_every=2, patience=2)
    making = Making(model, 128, {})
    data = lay_out_examples(table, making, tmp_path / "data", lambda text: None)
    done: list[dict[str, float]] = []
    for step in supervised_steps(on(learner), table, data):
        done.append(dict(step.metrics))
        if step.ends:
            break
    assert step.ends == "patience" and step.step < 40
    packed, trained, seconds = (step.metrics[name] for name in ("packed_tokens", "tokens", "seconds"))
    assert packed == len(data.examples(0)[0].token_ids) - 1, "the row that all four are is computed once, but for its last token"
    assert packed != trained
    assert f"{packed / seconds:,.0f} packed tokens/s, {trained / seconds:,.0f} trained" in step.line
    measured = [i for i, row in enumerate(done, 1) if "held_out_loss" in row]
    assert measured == list(range(2, step.step + 1, 2)) and "held_out_loss_before" in done[0]
    uniform = math.log(280)
    assert done[0]["held_out_loss_before"] == pytest.approx(uniform, abs=0.5)
    again = next(supervised_steps(on(learner, done[:-1]), table, data))
    assert (again.step, again.ends) == (step.step, "patience"), "a resume counts what was measured before it"


# Mid-training


def test_midtraining_learns_every_token_of_documents_and_answers_of_chats(model: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "mixed.jsonl", {"text": "two plus two"}, talk("what is it?", "it is four"))
    table = MidtrainConfig(steps=1, batch=2, data=data)
    examples = lay_out_examples(table, Making(model, 128, {}), tmp_path / "data", lambda text: None).examples(0)
    tokenizer = load_tokenizer(model)
    learned = sorted(tokenizer.decode(example.token_ids[example.trainable]) for example in examples)
    assert learned == ["it is four<|im_end|>", "two plus two<|endoftext|>"]


# Preferences


def preference(better: str, worse: str) -> Preference:
    asked = (Message("user", "what is it?"), Message("assistant", "four"), Message("user", "sure?"))
    return Preference(asked, (Message("assistant", better),), (Message("assistant", worse),))


def test_of_a_pair_the_last_answers_are_trained_and_the_prompt_is_not(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    better, worse = pair_examples(preference("it is", "two"), TemplateRenderer(tokenizer, {}), 128)
    assert tokenizer.decode(better.token_ids[better.trainable]) == "it is<|im_end|>"
    assert tokenizer.decode(worse.token_ids[worse.trainable]) == "two<|im_end|>"
    assert tokenizer.decode(better.token_ids[~better.trainable]).count("four") == 1
    with pytest.raises(ValueError, match=r"an answer with its prompt is \d+ tokens long, more than the 16 allowed"):
        pair_examples(preference("it is", "two"), TemplateRenderer(tokenizer, {}), 16)


def test_the_loss_of_a_pair_is_that_of_the_paper() -> None:
    """beta 0.5; the better answer gained 0.3 + 0.1 on the reference, the worse lost 0.2: margin 0.5 (0.4 + 0.2) = 0.3."""
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    reference = torch.tensor([-1.3, -2.1, -2.8])
    zeros, ints = torch.zeros(3), torch.zeros(3, dtype=torch.int32)
    inputs = LossInputs(
        logprobs=logprobs,
        entropy=zeros,
        old_logprobs=zeros,
        sampler_logprobs=zeros,
        reference_logprobs=reference,
        advantages=torch.tensor([1.0, 1.0, -1.0]),
        weights=torch.ones(3),
        mask=torch.ones(3, dtype=torch.bool),
        turn=ints,
        trajectory=torch.tensor([0, 0, 1], dtype=torch.int32),
        group=torch.tensor([7, 7, 7], dtype=torch.int32),
        policy_version=ints,
    )
    found = dpo(inputs, beta=0.5)
    expected = -math.log(1 / (1 + math.exp(-0.3)))
    assert found.terms["dpo"].tolist() == pytest.approx([expected] * 3)
    assert found.metrics["margin"].tolist() == pytest.approx([0.3] * 3)
    found.terms["dpo"][0].backward()
    slope = -0.5 * (1 - 1 / (1 + math.exp(-0.3)))  # d loss / d margin, times beta
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([slope, slope, -slope])


def pairs_of(model: Path) -> list[tuple[SupervisedExample, SupervisedExample]]:
    renderer = TemplateRenderer(load_tokenizer(model), {})
    return [
        pair_examples(preference(better, worse), renderer, 128) for better, worse in (("it is four", "two"), ("yes", "no, I believe two"))
    ]


def test_the_learners_gradient_of_pairs_is_autograds(model: Path, learner: Learner) -> None:
    """The mean over pairs, of sums over tokens, by the formula, on the same model: after a step, so that policy and reference differ."""
    pairs, beta = pairs_of(model), 0.3
    dpo_step(learner, pairs, beta)
    batch = pair_batch(pairs)
    measured = learner.forward_backward(batch, Objective("dpo", {"beta": beta}))
    grads = {name: parameter.grad.clone() for name, parameter in learner.policy.trained.items() if parameter.grad is not None}
    learner.discard()
    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    policy.load_state_dict({name: torch.from_numpy(array) for name, array in learner.weights().items()})

    def sums(of: Any) -> torch.Tensor:
        found = []
        for example in (one for pair in pairs for one in pair):
            ids = torch.from_numpy(example.token_ids.astype(np.int64))[None]
            logp = of(ids).logits[0].log_softmax(-1)
            at = torch.from_numpy(np.flatnonzero(example.trainable))
            found.append(logp[at - 1, ids[0, at]].sum())
        return torch.stack(found)

    with torch.no_grad():
        before = sums(reference)
    gains = sums(policy) - before
    loss = -torch.nn.functional.logsigmoid(beta * (gains[0::2] - gains[1::2])).mean()
    assert measured.terms["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 1e-3, "the policy has moved"
    loss.backward()
    own = dict(policy.named_parameters())
    assert grads.keys() == own.keys()
    for name, grad in grads.items():
        assert torch.allclose(grad, own[name].grad, atol=1e-5), name


def test_preferences_are_learned_and_a_resume_keeps_the_reference(model: Path, learner: Learner, tmp_path: Path) -> None:
    file = rows(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"what is {i}?", "chosen": "it is four", "rejected": "two, I believe"} for i in range(5)),
        {"prompt": "what?", "chosen": "same", "rejected": "same"},
    )
    table = DPOConfig(steps=8, batch=3, lr=1e-3, beta=0.5, data=file, max_rejects=1, schedule="constant")
    making = Making(model, 128, {}, order=5)
    data = lay_out(table, making, tmp_path / "data")
    assert [(one.pairs, one.rejected) for one in data.facts] == [(5, 1)]
    assert "chosen" in json.loads((tmp_path / "data" / "rejects.jsonl").read_text())["reason"]
    done, steps = list[dict[str, float]](), dpo_steps(on(learner), table, data)
    for _ in range(4):
        done.append(dict(next(steps).metrics))
    learner.save(tmp_path / "state")
    rest = [step.metrics for step in steps]
    assert done[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "policy and reference are one"
    assert rest[-1]["loss"] < 0.6 and rest[-1]["preferred"] == 1.0 and rest[-1]["margin"] > 0
    other = Learner(model, LearnerConfig(threads=1), seed=9)
    other.restore(tmp_path / "state")
    again = [step.metrics for step in dpo_steps(on(other, done), table, lay_out(table, making, tmp_path / "data"))]
    assert [row["loss"] for row in again] == [row["loss"] for row in rest]
    seen = [int(better.token_ids.sum()) for step in range(5) for better, _ in data.pairs(step)]
    assert sorted(seen[:5]) == sorted(seen[5:10]), "each pair once in every pass"
    with pytest.raises(ValueError, match="rejected: is the same as chosen"):
        lay_out(table.model_copy(update={"max_rejects": 0}), making, tmp_path / "strict")


def pair_rows(file: Path, name: str, count: int) -> str:
    return rows(file, *({"prompt": f"{name} {i}?", "chosen": f"{i} yes", "rejected": f"{i} no"} for i in range(count)))


def test_pairs_of_several_sources_are_blended_exactly_and_a_resume_has_the_same(model: Path, tmp_path: Path) -> None:
    own, other = pair_rows(tmp_path / "own.jsonl", "own", 5), pair_rows(tmp_path / "other.jsonl", "other", 3)
    Path(other).write_text(Path(other).read_text() + json.dumps({"prompt": "x", "chosen": "same", "rejected": "same"}) + "\n")
    others = [{"data": other, "percent": 25, "name": "general"}, {"data": other, "percent": 0, "name": "idle"}]
    table = DPOConfig.model_validate({"steps": 10, "batch": 4, "data": own, "blend": others, "max_rejects": 2})
    making = Making(model, 128, {}, order=5)
    work = DPO.plan(table, making, Playing(1, 1, 1), print)
    assert "blended: 75.00% own from" in work.work and "25.00% general from" in work.work and "3 pairs, 1 unfit rows left out" in work.work
    data = lay_out(table, making, tmp_path / "data")
    drawn = [one for step in range(10) for one in data.drawn(step)]
    assert Counter(one.source for one in drawn) == {"own": 30, "general": 10} and [one.position for one in drawn] == list(range(40))
    assert Counter(one.better for one in drawn if one.source == "own") == {f"{own}:{i}": 6 for i in range(1, 6)}
    trained = dict.fromkeys(("own", "general", "idle"), 0)
    for one, pair in zip(drawn[36:], data.pairs(9), strict=True):
        trained[one.source] += sum(int(example.trainable.sum()) for example in pair)
    assert data.metrics(9, data.pairs(9)) == {
        "blend/own": 0.75, "blend/general": 0.25, "blend/idle": 0.0, **{f"blend_tokens/{name}": n for name, n in trained.items()},
    }  # fmt: skip
    assert trained["own"] > trained["general"] > 0 == trained["idle"]
    shares = [(use.share.name, use.share.by, use.share.asked) for use in data.uses if use.share is not None]
    assert shares == [("own", "pairs", 0.75), ("general", "pairs", 0.25)]
    alone = lay_out(DPOConfig(steps=1, batch=30, data=own), making, tmp_path / "alone")
    of_own = [pair for step in range(10) for pair, one in zip(data.pairs(step), data.drawn(step), strict=True) if one.source == "own"]
    same = zip(of_own, alone.pairs(0), strict=True)
    assert all((a[0].token_ids == b[0].token_ids).all() and (a[1].token_ids == b[1].token_ids).all() for a, b in same)
    assert alone.metrics(0, alone.pairs(0)) == {} and list(alone.ending_lines("dpo", 1)) == ["dpo: 30 pairs seen, 6.0 passes over 5"]
    assert list(data.ending_lines("dpo", 10))[1] == "dpo general: 10 pairs seen, 3.3 passes over 3"
    rejects = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"]) for row in rejects] == [("general", 4), ("idle", 4)]
    pair_rows(Path(own), "changed", 2)
    assert [one for step in range(10) for one in lay_out(table, making, tmp_path / "data").drawn(step)] == drawn
    record = json.loads((tmp_path / "data" / "pairs.json").read_text())
    record["sources"][1]["name"] = "../own"
    (tmp_path / "data" / "pairs.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"pairs\.json: sources\[?\.?1"):
        PairData(tmp_path / "data")


@pytest.mark.parametrize(
    ("blend", "said"),
    [
        ([{"data": "b.jsonl", "percent": 60, "name": "b"}, {"data": "c.jsonl", "percent": 50, "name": "c"}], "sum to 110, more than 100"),
        ([{"data": "b.jsonl", "percent": 10, "name": "own"}], "two of the sources of pairs are called 'own'"),
        ([{"percent": 10, "name": "b"}], "exactly one of data"),
        ([{"data": "b.jsonl", "percent": 10, "name": "../b"}], "name"),
        ([{"data": "b.jsonl", "percent": 33.3333333, "name": "b"}], "shares as fine as these"),
    ],
)
def test_blends_of_pairs_that_cannot_be_are_refused(blend: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPOConfig.model_validate({"steps": 1, "data": "a.jsonl", "blend": blend})


# Packing


def test_packed_and_one_by_one_give_the_same_loss_and_gradient(model: Path) -> None:
    """Examples of several lengths in one packed pass, against a pass for each, weighted by its tokens."""
    rng = np.random.default_rng(0)
    examples = []
    for length in (5, 17, 9, 33):
        trainable = rng.random(length) < 0.6
        trainable[0], trainable[-1] = False, True
        examples.append(SupervisedExample(rng.integers(3, 280, length).astype(np.int32), trainable))
    packed, single = (Learner(model, LearnerConfig(threads=1), seed=0) for _ in range(2))
    whole = example_batch(examples)
    measured = packed.forward_backward(whole, CROSS_ENTROPY)
    share = 0.0
    gradients: dict[str, torch.Tensor] = {}
    for example in examples:
        part = plain_batch([(example.token_ids, example.trainable)])
        weight = part.tokens / whole.tokens
        share += weight * single.forward_backward(part, CROSS_ENTROPY).terms["loss"]
        for name, parameter in single.policy.trained.items():
            assert parameter.grad is not None
            gradients[name] = gradients.get(name, torch.zeros_like(parameter)) + weight * parameter.grad
        single.discard()
    assert measured.terms["loss"] == pytest.approx(share, abs=1e-5)
    for name, parameter in packed.policy.trained.items():
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradients[name], atol=1e-5)


# Transitions


@pytest.mark.parametrize("stage", STAGES)
def test_any_phase_starts_from_any_stage_and_the_plan_repeats_the_table(stage: Stage, tmp_path: Path) -> None:
    """A recipe of each kind alone, over a model in each stage, with two examples."""
    policy = write_paper_model(tmp_path / "policy")
    write_manifest(policy, Origin(name="policy", stage=stage, source="here"))
    talks = [talk("part one", "one"), talk("part", "two")]
    pairs = [{"prompt": f"part {i}", "chosen": "one", "rejected": "two"} for i in range(2)]
    values: dict[str, list[dict[str, Any]]] = {
        "cpt": [{"text": "part one"}, {"text": "two"}],
        "midtrain": talks,
        "sft": talks,
        "dpo": pairs,
    }
    for kind in KINDS:
        data: dict[str, Any] = {"steps": 1, "data": rows(tmp_path / f"{kind}.jsonl", *values[kind])} if kind in values else {"lr": 1e-5}
        config = config_from_data({**WHAT, "model": str(policy), kind: data, "engine": {"max_context": 300}})
        plan = make_plan(resolve(config))
        said = [line.partition(": ")[2] for line in plan.warnings if line.startswith(f"phase {kind} on a model of stage {stage}: ")]
        assert said == list(doubts(stage, kind, 2 if kind in values else None)), kind
        cell = {row.split("|")[1].strip(" `"): row.split("|") for row in transition_table().splitlines()}[stage]
        assert bool(said) == (cell[2 + list(KINDS).index(kind)].strip() != "good"), kind
    after = {kind: phase.stage for kind, phase in KINDS.items()}
    assert after == {"cpt": "mid-training", "midtrain": "mid-training", "sft": "sft", "dpo": "post-training", "rft": "rft"}


def test_a_doubtful_phase_is_said_and_a_good_one_is_not() -> None:
    assert list(doubts("pretraining-full", "rft")) == ["its chat template was never taught; put sft first"]
    assert list(doubts("sft", "rft")) == list(doubts("pretraining-full", "cpt")) == []
    assert [len(list(doubts("pretraining-full", "sft", count))) for count in (9, 20_000, None)] == [1, 0, 0]
    assert all(one.why and one.stages and one.kinds for one in TRANSITIONS)
