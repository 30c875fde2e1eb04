"""Adapters against peft and by hand: what they compute, what moves, and what is stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.rollout.transport.shipment import Form
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.group import LearnerGroup
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.folder import Origin, write_model_folder
from burnish.trainer.objectives.objective import CROSS_ENTROPY, Objective

pytestmark = pytest.mark.unit

VOCAB = 40
LORA = LoRAConfig(rank=3, alpha=12, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, tie_word_embeddings=True, initializer_range=0.2)  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    return plain_batch([(rng.integers(0, VOCAB, n).astype(np.int32), np.arange(n) > 2) for n in (6, 9, 12)])


def make_learner(folder: Path, lora: LoRAConfig | None = LORA) -> Learner:
    return Learner(folder, LearnerConfig(threads=1, lora=lora, optimizer=OptimizerConfig(lr=1e-2)), seed=0)


def trained(folder: Path, batch: TokenBatch, steps: int = 3) -> Learner:
    learner = make_learner(folder)
    for _ in range(steps):
        learner.forward_backward(batch, CROSS_ENTROPY)
        learner.step()
    return learner


def plain_logprobs(model: torch.nn.Module, batch: TokenBatch) -> np.ndarray:
    found = []
    for ids, mask in zip(batch.sequences, batch.masks, strict=True):
        with torch.no_grad():
            logprobs = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0].log_softmax(-1)
        of_next = logprobs[np.arange(len(ids) - 1), torch.from_numpy(ids[1:]).long()].numpy()
        found.append(np.where(mask, np.concatenate([[0.0], of_next]), 0.0))
    return np.concatenate(found)


def test_an_untrained_adapter_changes_nothing(folder: Path, batch: TokenBatch) -> None:
    with_adapters, without = make_learner(folder), make_learner(folder, None)
    np.testing.assert_array_equal(with_adapters.score(batch).logprobs, without.score(batch).logprobs)
    weights = without.weights()
    assert with_adapters.weights().keys() == weights.keys()
    assert all(np.array_equal(array, weights[name]) for name, array in with_adapters.weights().items())


def test_only_adapters_move_and_the_merged_model_computes_what_they_do(folder: Path, batch: TokenBatch) -> None:
    learner, before = trained(folder, batch), make_learner(folder, None).weights()
    after = learner.weights()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {f"model.layers.{i}.{layer}.weight" for i in (0, 1) for layer in ("self_attn.q_proj", "mlp.down_proj")}
    for name in moved:
        assert np.linalg.matrix_rank(after[name] - before[name], tol=1e-5) == LORA.rank
    merged = LlamaForCausalLM.from_pretrained(folder).eval()
    merged.load_state_dict({name: torch.from_numpy(array) for name, array in after.items()})
    np.testing.assert_allclose(learner.score(batch).logprobs, plain_logprobs(merged, batch), atol=1e-5)


def test_the_optimizer_holds_nothing_but_adapters(folder: Path, batch: TokenBatch) -> None:
    learner = trained(folder, batch, steps=1)
    held = sum(p.numel() for group in learner.optimizer.param_groups for p in group["params"])
    assert held == 2 * 3 * (32 + 32) + 2 * 3 * (48 + 32)


def test_the_reference_is_the_base(folder: Path, batch: TokenBatch) -> None:
    learner, base = make_learner(folder), make_learner(folder, None)
    objective = Objective("cross_entropy", kl_coef=0.1)
    for _ in range(3):
        learner.forward_backward(batch, objective)
        learner.step()
    apart = learner.score(batch, reference=True).logprobs - base.score(batch).logprobs
    assert np.abs(apart).max() < 1e-6
    assert np.abs(learner.score(batch).logprobs - base.score(batch).logprobs).max() > 1e-3


def test_a_saved_state_is_an_adapter_that_peft_loads(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    learner = trained(folder, batch)
    learner.save(tmp_path / "state")
    assert not (tmp_path / "state" / "weights.safetensors").exists()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder), tmp_path / "state").eval()
    np.testing.assert_allclose(learner.score(batch).logprobs, plain_logprobs(model, batch), atol=1e-5)


def test_training_goes_on_from_a_state_bit_by_bit(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    through, resumed = trained(folder, batch), make_learner(folder)
    through.save(tmp_path / "state")
    resumed.restore(tmp_path / "state")
    for learner in (through, resumed):
        learner.forward_backward(batch, CROSS_ENTROPY)
        learner.step()
    for name, array in through.weights().items():
        np.testing.assert_array_equal(resumed.weights()[name], array)


def saved_as_model(learner: Learner, folder: Path, out: Path) -> Path:
    write_model_folder(learner.weights(), folder, out, Origin(name="after", stage="sft", source="after"))
    return out


@pytest.mark.parametrize("lora", [None, LORA, LoRAConfig(rank=2, alpha=2)], ids=["whole", "the same again", "others"])
def test_a_learner_begins_anew_from_what_its_adapters_were_merged_into(
    folder: Path, batch: TokenBatch, tmp_path: Path, lora: LoRAConfig | None
) -> None:
    """It computes the same, to the bit; the reference of the next phase is that; and its state belongs to that model, not to the first."""
    learner = trained(folder, batch)
    before, version = learner.weights(), learner.version
    base = saved_as_model(learner, folder, tmp_path / "merged")
    learner.rebase(base, lora)
    learner.begin_phase(OptimizerConfig(lr=1e-2))
    assert (learner.base, learner.config.lora, learner.version, learner.phase_step) == (base, lora, version, 0)
    assert all(np.array_equal(array, before[name]) for name, array in learner.weights().items())
    at_first = learner.score(batch).logprobs
    for _ in range(2):
        learner.forward_backward(batch, Objective("cross_entropy", kl_coef=0.1))
        learner.step()
    np.testing.assert_allclose(learner.score(batch, reference=True).logprobs, at_first, atol=1e-6)
    after = learner.weights()
    matrices = [name for name in before if lora is not None and before[name].ndim > 1]
    assert all(np.linalg.matrix_rank(after[name] - before[name], tol=1e-5) <= (lora.rank if lora else 0) for name in matrices)
    learner.save(tmp_path / "state")
    resumed = make_learner(folder)
    resumed.rebase(base, lora)
    resumed.restore(tmp_path / "state")
    for one in (learner, resumed):
        one.forward_backward(batch, CROSS_ENTROPY)
        one.step()
    assert all(np.array_equal(array, resumed.weights()[name]) for name, array in learner.weights().items())
    with pytest.raises(ValueError, match=r"was saved with learner\.lora|holds adapters of another model"):
        make_learner(folder).restore(tmp_path / "state")


def test_engines_get_adapters_alone_only_over_the_model_that_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[object, ...]]()
    monkeypatch.setattr(LearnerGroup, "_all", lambda group, *call: asked.append(call))
    group = object.__new__(LearnerGroup)
    group._model = Path("/models/first")
    group.send_as(Form("bfloat16", adapters=True))
    for model, lora, alone in (("merged", LORA, False), ("first", LORA, True), ("first", None, False)):
        group.rebase(Path("/models") / model, lora)
        assert group._sender.form == Form("bfloat16", adapters=alone) and group._frozen is None
        assert asked[-1] == ("rebase", f"/models/{model}", lora)
    group.send_as(Form("bfloat16"))
    group.rebase(Path("/models/first"), LORA)
    assert not group._sender.form.adapters, "as the recipe asked"


def test_a_learner_that_began_so_is_left_as_it_is(folder: Path, batch: TokenBatch) -> None:
    learner = trained(folder, batch)
    before, optimizer = learner.weights(), learner.optimizer
    learner.rebase(folder, LORA)
    assert learner.optimizer is optimizer and all(np.array_equal(array, before[name]) for name, array in learner.weights().items())


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=3, alpha=24, targets=LORA.targets)], ids=["none", "another"])
def test_a_state_of_other_adapters_is_refused(folder: Path, batch: TokenBatch, tmp_path: Path, lora: LoRAConfig | None) -> None:
    trained(folder, batch, steps=1).save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"was saved with learner.lora = .*, and this learner has"):
        make_learner(folder, lora).restore(tmp_path / "state")


def test_adapters_of_another_base_are_refused(folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    trained(folder, batch, steps=1).save(tmp_path / "state")
    file = tmp_path / "state" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base": "0" * 64}))
    with pytest.raises(ValueError, match="holds adapters of another model than"):
        make_learner(folder).restore(tmp_path / "state")
