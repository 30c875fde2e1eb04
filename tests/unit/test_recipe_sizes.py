"""What a plan expects a learner's activations to take, against the tensors that autograd saves."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.recipe.sizes import activation_bytes, model_facts
from burnish.trainer.learner.attention import make_layout, use_packed_attention
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.packing import Segment

pytestmark = pytest.mark.unit

SHAPES = {"wide MLP, shared keys": (512, 2048, 8, 2), "narrow MLP, keys of its own": (256, 512, 4, 4), "SmolLM2's": (576, 1536, 9, 3)}


def saved_bytes(model: LlamaForCausalLM, tokens: int, dtype: torch.dtype) -> int:
    """Of all that a forward pass of one sequence keeps for its backward pass; weights and their copies are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = sum(2 * p.numel() for p in model.model.layers.parameters() if p.ndim > 1) if dtype != torch.float32 else 0
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, so that no other gets its address
        return tensor

    at = torch.arange(tokens)[None]
    layout = make_layout([Segment(0, tokens)], torch.device("cpu"), dtype)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        model.model(input_ids=at, position_ids=at, use_cache=False, packed_layout=layout)
    return sum(size for size, _ in found.values()) - copies


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_take_what_is_expected_within_fifteen_percent(tmp_path: Path, shape: str, dtype: str) -> None:
    hidden, intermediate, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(vocab_size=400, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=3,
                         num_attention_heads=heads, num_key_value_heads=kv_heads)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    use_packed_attention(model)
    expected = activation_bytes(model_facts(tmp_path), LearnerConfig.model_validate({"dtype": dtype}))
    assert expected == pytest.approx(saved_bytes(model, 400, getattr(torch, dtype)) / 400, rel=0.15)
