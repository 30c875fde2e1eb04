"""The learner against hand-made updates: what it minimises, reports, refuses, hands out and takes back."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Outcome, Reward, Task, Trajectory
from burnish.rollout.weights import PARITY_BOUNDS
from burnish.trainer.batch import GroupBatch
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.objectives.advantages import grpo, normalised
from burnish.trainer.objectives.losses import LossInputs, LossOutputs, per_sequence
from burnish.trainer.objectives.measures import compare_engines, mismatch, per_trajectory
from burnish.trainer.objectives.objective import CROSS_ENTROPY, Objective
from burnish.trainer.objectives.registry import loss
from burnish.trainer.phases.supervised import example_batch, supervised_step

pytestmark = pytest.mark.unit

VOCAB = 40
PROMPT = 9
BROKEN = Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, tie_word_embeddings=True, initializer_range=0.2)  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def make_learner(folder: Path, config: LearnerConfig | None = None) -> Learner:
    return Learner(folder, config or LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=1e-3)), seed=0)


def make_group(learner: Learner, outcomes: Sequence[Outcome], seed: int = 0, noise: float = 0.0) -> EpisodeGroup:
    """Random continuations of one prompt; the engine's log-probabilities are the learner's own, moved by `noise`."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, VOCAB, PROMPT)
    task = Task(f"t{seed}", seed)
    episodes = []
    for sample, outcome in enumerate(outcomes):
        ids = np.concatenate([prompt, rng.integers(0, VOCAB, rng.integers(3, 10))]).astype(np.int32)
        trainable = np.arange(len(ids)) >= PROMPT
        bare = Trajectory(ids, trainable, np.zeros(len(ids), np.float32), np.where(trainable, learner.version, -1).astype(np.int32))
        logprobs = learner.logprobs([bare])[0] + np.where(trainable, noise, 0).astype(np.float32)
        episodes.append(Episode(task, sample, (dataclasses.replace(bare, logprobs=logprobs),), (), outcome))
    return EpisodeGroup(task, tuple(episodes))


def update(learner: Learner, groups: Sequence[EpisodeGroup], objective: Objective | None = None) -> dict[str, float]:
    """One GRPO step and what it reports."""
    batch = GroupBatch(tuple(groups))
    batch_with_credit = batch.train(grpo(batch))
    measured = learner.forward_backward(batch_with_credit, objective or Objective())
    metrics = measured.means(batch_with_credit) | mismatch(batch_with_credit, measured.logprobs, learner.version)
    return metrics | learner.step() | {"tokens": batch_with_credit.tokens, "packed_tokens": measured.packed_tokens}


def example(*tokens: int) -> SupervisedExample:
    return SupervisedExample(np.array(tokens, dtype=np.int32), np.arange(len(tokens)) > 0)


def plain_logprobs(folder: Path, trajectory: Trajectory) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    at = np.flatnonzero(trajectory.trainable)
    with torch.no_grad():
        logits = model(torch.from_numpy(trajectory.token_ids[None].astype(np.int64))).logits[0]
    return logits.log_softmax(-1)[at - 1, trajectory.token_ids[at]]


def gradient(learner: Learner) -> dict[str, torch.Tensor]:
    """What AdamW's first moment shows of the gradient of the first step: (1 - beta1) g."""
    model = learner.policy.model
    return {name: learner.optimizer.state[parameter]["exp_avg"] / 0.1 for name, parameter in model.named_parameters()}


def test_logprobs_are_those_of_the_plain_model(folder: Path) -> None:
    learner = make_learner(folder)
    trajectory = make_group(learner, [Reward(1.0)]).episodes[0].trajectories[0]
    (ours,) = learner.logprobs([trajectory])
    torch.testing.assert_close(torch.from_numpy(ours[trajectory.trainable]), plain_logprobs(folder, trajectory), atol=1e-5, rtol=0)
    assert not ours[~trajectory.trainable].any()


def test_tokens_that_the_model_does_not_know_are_refused_in_words(folder: Path) -> None:
    learner = make_learner(folder)
    for ids in ([1, VOCAB], [1, -1]):
        batch = example_batch([SupervisedExample(np.array(ids, np.int32), np.array([False, True]))])
        said = rf"token ids -?\d+ to {max(ids)}, but the model's are 0 to 39"
        with pytest.raises(ValueError, match=said):
            learner.score(batch)
        with pytest.raises(ValueError, match=said):
            learner.forward_backward(batch, CROSS_ENTROPY)


def test_an_update_raises_the_better_and_lowers_the_worse(folder: Path) -> None:
    learner = make_learner(folder)
    group = make_group(learner, [Reward(1.0), Reward(0.0)])
    better, worse = (episode.trajectories[0] for episode in group.episodes)
    metrics = update(learner, [group])
    after_better, after_worse = learner.logprobs([better, worse])
    assert after_better.sum() > better.logprobs.sum()
    assert after_worse.sum() < worse.logprobs.sum()
    assert learner.version == 1
    assert metrics["tokens"] == better.trainable.sum() + worse.trainable.sum()
    assert metrics["packed_tokens"] == len(better) + len(worse) - 2 - PROMPT
    assert metrics["parity_max"] < 1e-5
    assert metrics["clip_fraction"] == metrics["stale_fraction"] == 0.0


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "supervised"])
def test_a_step_in_bfloat16_is_one_in_float32_but_for_rounding(folder: Path, policy: bool, checkpointing: bool) -> None:
    """A bfloat16 has 8 bits, so a product of it is off by up to 0.4 %; what is learned is kept in float32."""
    optimizer = OptimizerConfig(lr=1e-3, grad_clip=1e9)
    exact = make_learner(folder, LearnerConfig(threads=1, optimizer=optimizer))
    rounded = make_learner(folder, LearnerConfig(threads=1, optimizer=optimizer, dtype="bfloat16", activation_checkpointing=checkpointing))
    start = flat(exact.policy.trained.values())
    groups = GroupBatch(tuple(make_group(exact, [Reward(1.0), Reward(0.0), Reward(0.0)], seed) for seed in range(3)))
    batch = groups.train(grpo(groups)) if policy else example_batch([example(*range(at, at + 12)) for at in range(8)])
    first, second = (one.forward_backward(batch, Objective() if policy else CROSS_ENTROPY) for one in (exact, rounded))
    off = np.abs(first.logprobs - second.logprobs)[batch.mask]
    bound = PARITY_BOUNDS["bfloat16"]
    assert 1e-5 < off.mean() < bound.mean and np.quantile(off, 0.95) < bound.quantile, (off.mean(), np.quantile(off, 0.95))
    assert second.terms["loss"] == pytest.approx(first.terms["loss"], rel=0.02, abs=2e-3)
    for one in (exact, rounded):
        assert {tensor.dtype for tensor in one.policy.trained.values()} == {torch.float32}, "the weights that are kept"
    ours, theirs = (flat(tensor.grad for tensor in one.policy.trained.values() if tensor.grad is not None) for one in (rounded, exact))
    assert (ours - theirs).norm() < 0.05 * theirs.norm(), float((ours - theirs).norm() / theirs.norm())
    norms = [one.step()["grad_norm"] for one in (exact, rounded)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    moved, off_by_rounding = (flat(one.policy.trained.values()) - start for one in (exact, rounded))
    assert torch.nn.functional.cosine_similarity(moved, off_by_rounding, dim=0) > 0.9, (
        "AdamW moves each weight by its rate, in the sign of its gradient"
    )
    assert {state.dtype for of in rounded.optimizer.state.values() for state in of.values()} == {torch.float32}


def test_the_gradient_is_the_token_mean_policy_gradient(folder: Path) -> None:
    config = LearnerConfig(threads=1, optimizer=OptimizerConfig(grad_clip=1e9))
    learner = make_learner(folder, config)
    group = make_group(learner, [Reward(1.0), Reward(0.0)])
    update(learner, [group])
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    total = sum(int(e.trajectories[0].trainable.sum()) for e in group.episodes)
    # Advantages of (1, 0) are +1 and -1, and at ratio 1 the surrogate's gradient is A times that of the log-probability.
    for episode, advantage in zip(group.episodes, (1.0, -1.0), strict=True):
        t = episode.trajectories[0]
        at = np.flatnonzero(t.trainable)
        logits = model(torch.from_numpy(t.token_ids[None].astype(np.int64))).logits[0]
        (-advantage * logits.log_softmax(-1)[at - 1, t.token_ids[at]].sum() / total).backward()
    for name, ours in gradient(learner).items():
        torch.testing.assert_close(ours, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"microbatch_tokens": 12}, {"logit_rows": 2}, {"activation_checkpointing": True}], ids=lambda change: next(iter(change))
)
def test_how_the_work_is_cut_changes_nothing(folder: Path, change: dict[str, int]) -> None:
    objective = Objective(kl_coef=0.1, entropy_coef=0.01)
    whole = make_learner(folder, LearnerConfig(threads=1))
    cut = make_learner(folder, LearnerConfig.model_validate({"threads": 1, **change}))
    groups = [make_group(whole, [Reward(float(r)) for r in (0, 1, 1, 0)], seed, noise=0.3) for seed in range(3)]
    expected, found = update(whole, groups, objective), update(cut, groups, objective)
    for key in ("loss", "entropy", "grad_norm", "parity_max", "mismatch_kl", "clip_fraction", "reference_kl"):
        assert found[key] == pytest.approx(expected[key], abs=2e-6), key
    for name, ours in gradient(cut).items():
        torch.testing.assert_close(ours, gradient(whole)[name], atol=1e-5, rtol=1e-4)


def test_a_failed_member_is_absent_not_zero(folder: Path) -> None:
    whole, masked = make_learner(folder), make_learner(folder)
    group = make_group(whole, [Reward(1.0), Reward(0.5), BROKEN])
    update(whole, [dataclasses.replace(group, episodes=group.episodes[:2])])
    update(masked, [group])
    for name, tensor in whole.weights().items():
        np.testing.assert_array_equal(tensor, masked.weights()[name])


def test_what_is_reported_of_a_mismatch(folder: Path) -> None:
    learner = make_learner(folder)
    good, stale = make_group(learner, [Reward(1.0), Reward(0.0)], 1), make_group(learner, [Reward(1.0), Reward(0.0)], 2, noise=0.05)
    metrics = update(learner, [good, stale])
    assert metrics["parity_max"] == pytest.approx(0.05, abs=1e-5)
    share = metrics["parity_mean"] / 0.05  # of the tokens that are off, each by a log-ratio of -0.05
    assert metrics["mismatch_kl"] == pytest.approx(share * (np.exp(-0.05) - 1 + 0.05), rel=1e-2)


def test_an_engine_that_is_off_is_named(folder: Path) -> None:
    learner = make_learner(folder)
    good, stale = make_group(learner, [Reward(1.0), Reward(0.0)], 1), make_group(learner, [Reward(1.0), Reward(0.0)], 2, noise=0.05)
    named = [by_engine(group, name) for group, name in ((good, "engine-0"), (stale, "engine-1"))]
    batch = GroupBatch(tuple(named)).tokens
    logprobs = learner.score(batch).logprobs
    fine, off = compare_engines(batch, logprobs, 0, PARITY_BOUNDS["float32"])
    assert (fine.engine, fine.holds, off.engine, off.holds) == ("engine-0", True, "engine-1", False)
    assert fine.max_difference < 1e-5
    with pytest.raises(ValueError, match="does not say which engine sampled it"):
        compare_engines(GroupBatch((good,)).tokens, logprobs[: batch.offsets[2]], 0, PARITY_BOUNDS["float32"])


def by_engine(group: EpisodeGroup, engine: str) -> EpisodeGroup:
    return dataclasses.replace(group, episodes=tuple(dataclasses.replace(episode, engine=engine) for episode in group.episodes))


@pytest.mark.parametrize("how", ["discarded", "raised"])
def test_a_pass_that_was_given_up_leaves_nothing_for_the_next(folder: Path, how: str) -> None:
    learner, untouched = make_learner(folder), make_learner(folder)
    batch = GroupBatch((make_group(learner, [Reward(1.0), Reward(0.0)], 1),))
    trained = batch.train(grpo(batch))
    if how == "discarded":
        learner.forward_backward(trained, Objective())
        learner.discard()
    else:
        calls = iter([1.0])

        @loss("tests/breaks-v1", level="token")
        def breaks_at_the_second_slice(inputs: LossInputs) -> LossOutputs:
            return LossOutputs({"policy": inputs.logprobs * next(calls)})

        learner.policy.logit_rows = 2
        with pytest.raises(ValueError, match="loss 'tests/breaks-v1': StopIteration"):
            learner.forward_backward(trained, Objective("tests/breaks-v1"))
        learner.policy.logit_rows = 512
    for each in (learner, untouched):
        supervised_step(each, [example(1, 2, 3, 4)])
    for name, tensor in untouched.weights().items():
        np.testing.assert_array_equal(learner.weights()[name], tensor)


def test_gradients_of_several_passes_add_up(folder: Path) -> None:
    both, apart = make_learner(folder), make_learner(folder)
    examples = [example(1, 2, 3, 4), example(1, 2, 9)]
    supervised_step(both, examples)
    whole = CROSS_ENTROPY.with_scale(example_batch(examples))
    for part in ([0], [1]):
        apart.forward_backward(whole.select(part), CROSS_ENTROPY)
    apart.step()
    for name, ours in gradient(apart).items():
        torch.testing.assert_close(ours, gradient(both)[name], atol=1e-6, rtol=1e-4)


def test_a_step_at_a_quarter_of_the_rate_moves_a_quarter_as_far(folder: Path) -> None:
    moved = []
    for scale in (1.0, 0.25):
        learner = make_learner(folder)
        before = learner.weights()
        learner.forward_backward(example_batch([example(1, 2, 3, 4)]), CROSS_ENTROPY)
        assert learner.step(scale)["lr"] == 1e-3 * scale
        moved.append(np.concatenate([(learner.weights()[name] - was).ravel() for name, was in before.items()]))
    assert np.abs(moved[0]).max() > 9e-4
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], atol=1e-6)


def test_a_loss_over_whole_sequences_gets_the_gradient_that_autograd_gives(folder: Path) -> None:
    """GSPO's ratio of a whole sequence against a plain model with the loss written out."""
    learner = make_learner(folder, LearnerConfig(threads=1, optimizer=OptimizerConfig(grad_clip=1e9), logit_rows=3, microbatch_tokens=12))
    group = make_group(learner, [Reward(1.0), Reward(0.0), Reward(0.5)], noise=0.2)
    batch = GroupBatch((group,))
    trained = batch.train(grpo(batch))

    def gspo(inputs: LossInputs) -> LossOutputs:
        ratio = per_sequence(inputs.logprobs - inputs.old_logprobs, inputs.trajectory).exp()
        return LossOutputs({"policy": -ratio * inputs.advantages}, {"ratio": ratio.detach()})

    measured = learner.forward_backward(trained, Objective(gspo, aggregation="sequence", entropy_coef=0.01))
    learner.step()
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    total = torch.zeros(())
    for episode, advantage in zip(group.episodes, normalised(np.array([1.0, 0.0, 0.5])), strict=True):
        t = episode.trajectories[0]
        at = np.flatnonzero(t.trainable)
        logp = model(torch.from_numpy(t.token_ids[None].astype(np.int64))).logits[0, at - 1].log_softmax(-1)
        chosen, old = logp[np.arange(len(at)), t.token_ids[at]], torch.from_numpy(t.logprobs[at])
        entropy = -(logp.exp() * logp).sum(-1).mean()
        total = total + (-(chosen - old).mean().exp() * float(advantage) - 0.01 * entropy) / 3
    total.backward()
    assert measured.terms["loss"] == pytest.approx(total.item(), abs=1e-5)
    for name, ours in gradient(learner).items():
        torch.testing.assert_close(ours, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
    assert measured.tokens["ratio"][trained.mask] == pytest.approx(np.exp(-0.2), rel=1e-4)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda inputs: inputs.logprobs, "must give LossOutputs, not Tensor"),
        (lambda inputs: LossOutputs({"policy": inputs.logprobs.sum()}), "one value per token"),
        (lambda inputs: LossOutputs({"policy": inputs.logprobs.detach()}), "does not depend on logprobs"),
    ],
)
def test_a_loss_that_does_not_give_what_it_must_is_named(folder: Path, function: object, says: str) -> None:
    learner = make_learner(folder)
    batch = GroupBatch((make_group(learner, [Reward(1.0), Reward(0.0)]),))
    with pytest.raises(ValueError, match=says):
        learner.forward_backward(batch.train(grpo(batch)), Objective(function))  # type: ignore[arg-type]


def test_what_was_measured_of_a_token_goes_back_to_its_episode(folder: Path) -> None:
    learner = make_learner(folder)
    group = make_group(learner, [Reward(1.0), Reward(0.0)], noise=0.1)
    batch = GroupBatch((group,))
    trained = batch.train(grpo(batch))
    rows = per_trajectory(trained, learner.forward_backward(trained, Objective()))
    for row, episode, advantage in zip(rows, group.episodes, (1.0, -1.0), strict=True):
        trajectory, at = episode.trajectories[0], episode.trajectories[0].trainable
        assert {len(values) for values in row.values()} == {len(trajectory)}
        assert row["mask"].tolist() == at.astype(float).tolist()
        assert row["advantage"][at] == pytest.approx(advantage, rel=1e-5)
        assert row["sampler_logprobs"].tolist() == trajectory.logprobs.tolist()
        assert row["logprobs"][at] - row["sampler_logprobs"][at] == pytest.approx(-0.1, abs=1e-5)
        assert row["ratio"][at] == pytest.approx(np.exp(-0.1), rel=1e-4)


def test_versions_that_are_behind_are_counted(folder: Path) -> None:
    learner = make_learner(folder)
    group = make_group(learner, [Reward(1.0), Reward(0.0)])
    update(learner, [group])
    assert update(learner, [group])["stale_fraction"] == 1.0


def test_the_reference_is_the_policy_at_the_phases_first_policy_update(folder: Path) -> None:
    learner, objective = make_learner(folder, LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=1e-2))), Objective(kl_coef=0.1)
    group = make_group(learner, [Reward(1.0), Reward(0.0)])
    assert update(learner, [group], objective)["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert update(learner, [group], objective)["reference_kl"] > 1e-4
    learner.begin_phase(OptimizerConfig(lr=1e-2))
    assert update(learner, [group], objective)["reference_kl"] == pytest.approx(0.0, abs=1e-6)


def test_supervised_loss_is_the_token_mean_and_falls(folder: Path) -> None:
    learner = make_learner(folder)
    examples = [example(1, 2, 3, 4), example(1, 2, 9)]
    before = learner.score(example_batch(examples)).terms["loss"]
    metrics = supervised_step(learner, examples)
    zeros = [(np.zeros(len(e.token_ids), np.float32), np.zeros(len(e.token_ids), np.int32)) for e in examples]
    plain = [plain_logprobs(folder, Trajectory(e.token_ids, e.trainable, *zero)) for e, zero in zip(examples, zeros, strict=True)]
    assert before == pytest.approx(-torch.cat(plain).mean().item(), abs=1e-5)
    assert metrics["loss"] == pytest.approx(before, abs=1e-6)
    assert metrics["tokens"] == 5
    assert learner.score(example_batch(examples)).terms["loss"] < before


def test_nothing_to_train_on_is_refused(folder: Path) -> None:
    learner = make_learner(folder)
    with pytest.raises(ValueError, match="no trainable token"):
        update(learner, [make_group(learner, [BROKEN, BROKEN])])
    with pytest.raises(ValueError, match="no trainable token"):
        supervised_step(learner, [])


def test_what_is_not_finite_never_steps(folder: Path) -> None:
    learner = make_learner(folder)
    group = make_group(learner, [Reward(1.0), Reward(0.0)])
    before = learner.weights()
    with pytest.raises(FloatingPointError, match="t0/0: the engine gave a log-probability that is not finite"):
        update(learner, [make_group(learner, [Reward(1.0), Reward(0.0)], noise=np.nan)])
    # A ratio of exp(200) overflows float32 under a negative advantage.
    with pytest.raises(FloatingPointError, match="update 1 was not applied"):
        update(learner, [make_group(learner, [Reward(1.0), Reward(0.0)], noise=-200.0)])
    assert learner.version == 0
    for name, tensor in learner.weights().items():
        np.testing.assert_array_equal(tensor, before[name])
    assert update(learner, [group])["parity_max"] < 1e-5  # no gradient of the refused update is left over


def test_weights_are_whole_contiguous_and_copies(folder: Path) -> None:
    learner = make_learner(folder)
    weights = learner.weights()
    assert set(weights) == set(LlamaForCausalLM.from_pretrained(folder).state_dict())
    np.testing.assert_array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert all(tensor.dtype == np.float32 and tensor.flags.c_contiguous for tensor in weights.values())
    weights["model.norm.weight"][:] = 7.0
    assert learner.weights()["model.norm.weight"].max() < 7.0


def test_training_goes_on_bitwise_after_a_restore(folder: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=3, schedule="cosine", total_steps=10, weight_decay=0.1)
    config, objective = LearnerConfig(threads=1), Objective(kl_coef=0.1)
    through, broken = make_learner(folder, config), make_learner(folder, config)
    groups = [make_group(through, [Reward(1.0), Reward(0.0), Reward(0.2)], seed) for seed in range(4)]
    for learner in (through, broken):
        learner.begin_phase(optimizer)
    expected = [update(through, [group], objective) for group in groups]
    for group in groups[:2]:
        update(broken, [group], objective)
    broken.save(tmp_path / "state")
    resumed = make_learner(folder, config)
    resumed.restore(tmp_path / "state")
    assert resumed.version == 2
    found = [update(resumed, [group], objective) for group in groups[2:]]
    for ours, theirs in zip(found, expected[2:], strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    for name, tensor in through.weights().items():
        np.testing.assert_array_equal(resumed.weights()[name], tensor)


def test_the_place_in_the_schedule_is_the_callers_or_the_next_and_a_state_keeps_it(folder: Path, tmp_path: Path) -> None:
    """Of eight updates the rate falls over, linear warm-up in two, the third to the sixth are never made."""
    learner = make_learner(folder)
    learner.begin_phase(OptimizerConfig(lr=1.0, warmup_steps=2, schedule="cosine", total_steps=8))

    def lr(of: Learner, place: int | None = None) -> float:
        of.forward_backward(example_batch([example(1, 2, 3, 4)]), CROSS_ENTROPY)
        return of.step(0.5, place)["lr"]

    assert [lr(learner), lr(learner), lr(learner, 6)] == pytest.approx([0.25, 0.5, 0.25 * (1 + math.cos(math.pi * 4 / 6))])
    learner.save(tmp_path / "state")
    resumed = make_learner(folder)
    resumed.restore(tmp_path / "state")
    assert lr(resumed) == lr(learner) == pytest.approx(0.25 * (1 + math.cos(math.pi * 5 / 6)))


def test_a_state_is_whole_or_absent(folder: Path, tmp_path: Path) -> None:
    learner = make_learner(folder)
    (tmp_path / "empty").mkdir()
    learner.save(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
    with pytest.raises(ValueError, match="not empty"):
        learner.save(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"state\.json is missing"):
        learner.restore(tmp_path)
    tensors = load_file(tmp_path / "empty" / "weights.safetensors")
    assert "lm_head.weight" not in tensors  # tied weights are kept once
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "empty" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        learner.restore(tmp_path / "empty")


def test_folders_without_a_whole_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        make_learner(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        make_learner(tmp_path)
