"""The learner on CUDA against the learner on a CPU: the same numbers in float32, and in bfloat16 what rounding allows.

    .venv-gpu/bin/python -m pytest -m gpu tests/gpu

`make test` does not run these; they need one GPU, and neither Ray nor vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task, Trajectory
from burnish.trainer.batch import GroupBatch, TokenBatch
from burnish.trainer.learner.attention import make_layout, use_packed_attention
from burnish.trainer.learner.config import CriticConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.packing import microbatches
from burnish.trainer.objectives.advantages import grpo
from burnish.trainer.objectives.objective import Objective

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that PyTorch sees", allow_module_level=True)

VOCAB, PROMPT = 300, 40
FULL = OptimizerConfig(lr=1e-3)
Dtype = Literal["float32", "bfloat16"]


@pytest.fixture(scope="module", autouse=True)
def exact_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped-query attention, heads of 64, an output layer that is the embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.08)  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def learner(folder: Path, device: str, dtype: Dtype = "float32", lora: LoRAConfig | None = None, checkpointing: bool = False) -> Learner:
    config = LearnerConfig(
        device=device, dtype=dtype, optimizer=FULL, threads=4, microbatch_tokens=400, logit_rows=64, lora=lora,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    return Learner(folder, config, seed=0)


def groups(seed: int = 0, count: int = 3, samples: int = 6) -> list[EpisodeGroup]:
    """Random answers of different lengths to a prompt that a group shares; what the sampler gave them is near what a model gives."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        task, prompt, episodes = Task(f"t{number}", number), rng.integers(0, VOCAB, PROMPT + 7 * number), []
        for sample in range(samples):
            ids = np.concatenate([prompt, rng.integers(0, VOCAB, rng.integers(5, 90))]).astype(np.int32)
            trainable = np.arange(len(ids)) >= len(prompt)
            logprobs = np.where(trainable, -np.log(VOCAB) + rng.normal(0, 0.05, len(ids)), 0).astype(np.float32)
            trajectory = Trajectory(ids, trainable, logprobs, np.where(trainable, 0, -1).astype(np.int32))
            episodes.append(Episode(task, sample, (trajectory,), (), Reward(float(rng.random()))))
        made.append(EpisodeGroup(task, tuple(episodes)))
    return made


def batch(seed: int = 0) -> TokenBatch:
    of = GroupBatch(tuple(groups(seed)))
    return of.train(grpo(of))


def gradient(of: Learner) -> torch.Tensor:
    """All gradients in one row, on the CPU."""
    return torch.cat([p.grad.detach().float().cpu().flatten() for p in of.policy.trained.values() if p.grad is not None])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far apart two rows are, of the length of the second."""
    return float((a - b).norm() / b.norm())


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "token": Objective,
    "sequence": lambda: Objective("gspo", aggregation="sequence"),
    "reference": lambda: Objective(kl_coef=0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_on_a_gpu_gives_what_a_cpu_gives(folder: Path, name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        of = learner(folder, device)
        measured = of.forward_backward(batch(), OBJECTIVES[name]())
        grad = gradient(of)
        stepped = of.step()
        found[device] = (measured, grad, stepped["grad_norm"], of.logprobs([groups(1)[0].episodes[0].trajectories[0]])[0])
    cpu, gpu = found["cpu"], found["cuda"]
    assert np.abs(cpu[0].logprobs - gpu[0].logprobs).max() < 2e-5
    assert np.abs(cpu[0].entropy - gpu[0].entropy).max() < 2e-5
    assert gpu[0].terms["loss"] == pytest.approx(cpu[0].terms["loss"], rel=1e-4, abs=1e-6)
    assert apart(gpu[1], cpu[1]) < 1e-4
    assert gpu[2] == pytest.approx(cpu[2], rel=1e-4)
    assert np.abs(cpu[3] - gpu[3]).max() < 2e-3, "one step of AdamW moves a weight whose gradient is noise by its whole rate"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_on_a_gpu_is_float32_but_for_rounding(folder: Path, checkpointing: bool) -> None:
    """Of the gradient, which is small against its terms here, padded attention shows how much rounding alone does."""
    exact = learner(folder, "cpu")
    first, off = exact.forward_backward(batch(), Objective()), {}
    for ragged in (True, False):
        rounded = learner(folder, "cuda", "bfloat16", checkpointing=checkpointing)
        assert rounded.policy.ragged, "bfloat16 on CUDA is for the flash kernel"
        rounded.policy.ragged = ragged
        second = rounded.forward_backward(batch(), Objective())
        logprobs = np.abs(first.logprobs - second.logprobs)[batch().mask]
        assert logprobs.mean() < 0.02 and logprobs.max() < 0.2
        off[ragged] = apart(gradient(rounded), gradient(exact))
    assert off[True] < 0.2 and off[True] < 1.5 * off[False], off


def test_the_flash_kernel_sees_what_padded_blocks_see(folder: Path) -> None:
    """The same bfloat16 numbers through both ways: outputs and the gradient of the embedding."""
    model = LlamaForCausalLM.from_pretrained(folder).to("cuda", torch.bfloat16).eval()
    use_packed_attention(model)
    whole = batch()
    for packed in microbatches(whole.sequences, whole.masks, 400):
        ids, positions = (torch.from_numpy(array)[None].cuda() for array in (packed.token_ids, packed.position_ids))
        found = []
        for ragged in (False, True):
            model.zero_grad()
            layout = make_layout(packed.segments, torch.device("cuda"), torch.bfloat16, ragged)
            hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False, packed_layout=layout).last_hidden_state
            (hidden.float() * torch.linspace(-1, 1, hidden.shape[2], device="cuda")).sum().backward()
            grad = model.model.layers[0].self_attn.k_proj.weight.grad
            assert grad is not None
            found.append((hidden.detach().float().flatten().cpu(), grad.detach().float().flatten().cpu()))
        (padded, padded_grad), (flash, flash_grad) = found
        assert apart(flash, padded) < 0.01 and apart(flash_grad, padded_grad) < 0.03


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_leave_a_gpu_as_they_leave_a_cpu(folder: Path, dtype: Dtype) -> None:
    sums = {}
    for device in ("cpu", "cuda"):
        sums[device] = {
            name: sum_ for bucket in learner(folder, device).buckets(dtype, limit=200_000) for name, sum_ in bucket.manifest().items()
        }
    assert sums["cpu"] == sums["cuda"] and "lm_head.weight" in sums["cuda"]


def test_a_restored_learner_goes_on_as_the_saved_one(folder: Path, tmp_path: Path) -> None:
    one = learner(folder, "cuda")
    one.forward_backward(batch(), Objective())
    one.step()
    one.save(tmp_path / "state")
    other = learner(folder, "cuda")
    other.restore(tmp_path / "state")
    saved, restored = one.weights(), other.weights()
    assert saved.keys() == restored.keys() and all((saved[name] == restored[name]).all() for name in saved)
    ends = []
    for of in (one, other):
        of.forward_backward(batch(1), Objective())
        ends.append((of.step()["grad_norm"], of.version))
    assert ends[1] == (pytest.approx(ends[0][0], rel=1e-4), 2), "gradients are summed in no fixed order on a GPU"


def test_adapters_train_in_bfloat16_and_merge(folder: Path) -> None:
    of = learner(folder, "cuda", "bfloat16", LoRAConfig(rank=4, alpha=8))
    before = of.weights()
    for seed in range(2):  # B is zero at first, so A moves from the second step on
        of.forward_backward(batch(seed), Objective())
        assert np.isfinite(of.step()["grad_norm"])
    after = of.weights()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all("_proj" in name for name in moved) and "lora" not in " ".join(after)


def test_a_critic_trains_beside_the_policy(folder: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        of = learner(folder, device)
        of.begin_phase(FULL, CriticConfig())
        found[device] = of.score(batch()).tokens["value"]
    assert np.abs(found["cpu"] - found["cuda"]).max() < 1e-4
