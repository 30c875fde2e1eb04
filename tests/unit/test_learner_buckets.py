"""A learner's weights in buckets: all of them, rounded as torch rounds, tied ones once, never more than a bucket at a time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.rollout.engine.config import Dtype
from burnish.rollout.engine.vllm_base import as_array, as_tensor
from burnish.rollout.transport.buckets import Bucket
from burnish.trainer.learner.buckets import Memory, in_buckets
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig
from burnish.trainer.learner.learner import Learner

pytestmark = pytest.mark.unit

TENSORS = 2 + 2 * 9  # embedding and last norm, and nine of each layer


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, tie_word_embeddings=request.param == "tied", initializer_range=0.2)  # fmt: skip
    path = tmp_path_factory.mktemp(request.param)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("limit", [1, 5_000, 1 << 30])
def test_buckets_hold_every_weight_once_in_the_engines_dtype(folder: Path, dtype: Dtype, limit: int) -> None:
    learner = Learner(folder, LearnerConfig(threads=1), seed=0)
    weights = learner.weights()
    found, sizes, spans = dict[str, torch.Tensor](), list[tuple[int, int]](), 0
    for bucket in learner.buckets(dtype, limit):
        found |= {name: as_tensor(array).clone() for name, array in bucket.tensors()}
        sizes.append((bucket.data.nbytes, len(bucket.spans)))
        spans += len(bucket.spans)
    assert found.keys() == weights.keys() and "lm_head.weight" in found
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.from_numpy(weights[name]).to(getattr(torch, dtype))), name
    assert spans == TENSORS + (folder.name.startswith("untied")), "a tied output layer is not sent beside its embedding"
    assert all(size <= limit or count == 1 for size, count in sizes)
    assert all(size + after > limit for (size, _), (after, _) in pairwise(sizes)), "no bucket is left half empty"


def test_a_bucket_is_all_that_is_held(folder: Path) -> None:
    learner = Learner(folder, LearnerConfig(threads=1), seed=0)
    first, *others = [bucket.data for bucket in learner.buckets("bfloat16", 5_000)]
    again = next(learner.buckets("float16", 5_000)).data
    assert all(np.shares_memory(first, other) for other in (*others, again))


def test_merged_adapters_are_in_the_buckets(folder: Path) -> None:
    lora = LoRAConfig(rank=2, alpha=8, targets=("q_proj",))
    learner = Learner(folder, LearnerConfig(threads=1, lora=lora), seed=0)
    for name, parameter in learner.policy.trained.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    weights, found = learner.weights(), dict[str, np.ndarray]()
    for bucket in learner.buckets("float32", 5_000):
        found |= {name: array.copy() for name, array in bucket.tensors()}
    assert found.keys() == weights.keys() and all(np.array_equal(found[name], weights[name]) for name in weights)


def test_another_rank_goes_through_as_many_empty_buckets() -> None:
    named = [((name,), torch.ones(size)) for name, size in (("a", 3), ("b", 4), ("c", 20), ("d", 1))]
    mine, theirs = (list(in_buckets(iter(named), "float32", 28, keep, Memory())) for keep in (True, False))
    assert [[span.names[0] for span in bucket.spans] for bucket in mine] == [["a", "b"], ["c"], ["d"]]
    assert len(theirs) == len(mine) and all(bucket == Bucket((), bucket.data) and len(bucket.data) == 0 for bucket in theirs)


def test_numbers_in_engine_dtypes_go_to_torch_and_back() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.randn(3, 5).to(dtype)
        assert torch.equal(as_tensor(as_array(tensor)), tensor) and as_tensor(as_array(tensor)).dtype == dtype
