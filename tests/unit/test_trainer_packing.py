"""Packing keeps every prediction and computes shared tokens once; packed attention gives what plain attention gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from burnish.envs.types import Bool, Int32
from burnish.trainer.learner import attention
from burnish.trainer.learner.attention import make_layout, use_packed_attention
from burnish.trainer.learner.packing import PackedBatch, Segment, microbatches, pack, path_index

pytestmark = pytest.mark.unit


def ids(*tokens: int) -> Int32:
    return np.array(tokens, dtype=np.int32)


def after(prompt: int, length: int) -> Bool:
    return np.arange(length) >= prompt


def grouped(groups: int = 3, samples: int = 4, seed: int = 0) -> tuple[list[Int32], list[Bool]]:
    """Multi-turn trajectories: one system prompt, a prompt per group, continuations of many lengths with untrained holes."""
    rng = np.random.default_rng(seed)
    system = rng.integers(0, 50, 12)
    sequences, trainable = [], []
    for _ in range(groups):
        prompt = np.concatenate([system, rng.integers(0, 50, 15)])
        for _ in range(samples):
            tail = rng.integers(0, 50, rng.integers(2, 30))
            sequences.append(np.concatenate([prompt, tail]).astype(np.int32))
            mask = np.concatenate([np.zeros(len(prompt), bool), rng.random(len(tail)) < 0.7])
            mask[len(prompt)] = True
            trainable.append(mask)
    return sequences, trainable


def test_a_shared_prompt_is_computed_once_and_its_last_token_predicts_every_first_one() -> None:
    prompt = list(range(10, 20))
    batch = pack([ids(*prompt, 1, 2, 3), ids(*prompt, 4, 5)], [after(10, 13), after(10, 12)], [0, 1])
    assert batch.token_ids.tolist() == [*prompt, 1, 2, 4]  # the last targets, 3 and 5, need no hidden state
    assert batch.position_ids.tolist() == [*range(10), 10, 11, 10]
    assert batch.segments == (Segment(0, 10), Segment(10, 2, (0,), 10), Segment(12, 1, (0,), 10))
    assert batch.hidden_index.tolist() == [9, 10, 11, 9, 12]
    assert batch.targets.tolist() == [1, 2, 3, 4, 5]
    assert batch.sequence.tolist() == [0, 0, 0, 1, 1]
    assert batch.target_position.tolist() == [10, 11, 12, 10, 11]


def test_prefixes_too_short_to_pay_are_not_shared() -> None:
    batch = pack([ids(1, 2, 3), ids(1, 2, 4)], [after(1, 3)] * 2, [0, 1])
    assert [segment.ancestors for segment in batch.segments] == [(), ()]


def test_identical_trajectories_are_computed_once_and_each_counts() -> None:
    sequence = ids(*range(20))
    batch = pack([sequence] * 3, [after(15, 20)] * 3, [0, 1, 2])
    assert len(batch.token_ids) == 19
    assert len(batch.targets) == 15


def test_what_follows_the_last_prediction_or_trains_nothing_is_left_out() -> None:
    holed = np.array([0, 1, 0, 1, 0, 0], dtype=bool)
    (batch,) = microbatches([ids(5, 6, 7, 8, 9, 1), ids(1, 2)], [holed, np.zeros(2, bool)], 100)
    assert batch.token_ids.tolist() == [5, 6, 7]
    assert batch.targets.tolist() == [6, 8]
    assert list(microbatches([ids(1, 2)], [np.zeros(2, bool)], 100)) == []


def test_a_first_token_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="nothing precedes"):
        list(microbatches([ids(1, 2)], [np.ones(2, bool)], 100))


def restored_sequence(batch: PackedBatch, hidden: int) -> list[int]:
    """The context that a hidden state has seen, read off the tree."""
    index = next(i for i, s in enumerate(batch.segments) if s.start <= hidden < s.start + s.length)
    segment = batch.segments[index]
    path = path_index(batch.segments, (*segment.ancestors, index))
    seen = segment.context + hidden - segment.start + 1
    return [int(token) for token in batch.token_ids[path[:seen]]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=40), min_size=1, max_size=12), st.integers(4, 200))
def test_every_prediction_has_exactly_the_context_of_its_own_sequence(rows: list[list[int]], budget: int) -> None:
    sequences = [ids(*row) for row in rows]
    trainable = [np.arange(len(row)) % 3 > 0 for row in rows]
    found = set()
    for batch in microbatches(sequences, trainable, budget):
        for hidden, target, m, position in zip(batch.hidden_index, batch.targets, batch.sequence, batch.target_position, strict=True):
            assert restored_sequence(batch, int(hidden)) == rows[m][:position]
            assert batch.position_ids[hidden] == position - 1
            assert target == rows[m][position]
            found.add((int(m), int(position)))
    assert found == {(m, int(p)) for m, mask in enumerate(trainable) for p in np.flatnonzero(mask)}


def test_microbatches_stay_within_the_budget() -> None:
    sequences, trainable = grouped(groups=6, samples=8)
    sizes = [len(batch.token_ids) for batch in microbatches(sequences, trainable, 200)]
    assert len(sizes) > 1
    assert max(sizes) <= 200
    assert sum(sizes) < sum(len(sequence) for sequence in sequences) / 2


def test_blocks_cover_the_row_without_a_quadratic_mask() -> None:
    sequences, trainable = grouped(groups=6, samples=8)
    batch = pack(sequences, trainable, range(len(sequences)))
    layout = make_layout(batch.segments, torch.device("cpu"), torch.float32)
    outputs = torch.cat([block.query_index for block in layout.blocks])
    assert outputs[layout.unpad].tolist() == list(range(len(batch.token_ids)))
    masked = sum(block.mask.numel() for block in layout.blocks if block.mask is not None)
    assert masked < len(batch.token_ids) ** 2 / 4


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_packed_equals_plain_forward_and_gradients(kv_heads: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads
    )
    model = LlamaForCausalLM(config).eval()
    sequences, trainable = grouped()
    weights = [np.random.default_rng(i).normal(size=len(s)).astype(np.float32) / 100 for i, s in enumerate(sequences)]
    plain = []
    for sequence, mask, weight in zip(sequences, trainable, weights, strict=True):
        at = np.flatnonzero(mask)
        logprobs = model(torch.from_numpy(sequence[None].astype(np.int64))).logits[0].log_softmax(-1)[at - 1, sequence[at]]
        (logprobs * torch.from_numpy(weight[at])).sum().backward()
        plain.append(logprobs.detach())
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()

    use_packed_attention(model)
    worst = 0.0
    for batch in microbatches(sequences, trainable, 200):
        layout = make_layout(batch.segments, torch.device("cpu"), torch.float32)
        tokens, positions = torch.from_numpy(batch.token_ids)[None], torch.from_numpy(batch.position_ids)[None]
        hidden = model.model(input_ids=tokens, position_ids=positions, use_cache=False, packed_layout=layout).last_hidden_state[0]
        logprobs = model.lm_head(hidden[torch.from_numpy(batch.hidden_index)]).log_softmax(-1)
        logprobs = logprobs.gather(-1, torch.from_numpy(batch.targets)[:, None]).squeeze(-1)
        factor = torch.from_numpy(np.array([weights[m][p] for m, p in zip(batch.sequence, batch.target_position, strict=True)]))
        (logprobs * factor).sum().backward()
        for m in set(batch.sequence.tolist()):
            worst = max(worst, (logprobs.detach()[torch.from_numpy(batch.sequence == m)] - plain[m]).abs().max().item())
    assert worst < 1e-5
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad - expected[name]).abs().max().item() < 1e-5, name


def reference_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor, longest_query: int,
    longest_key: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What the flash kernel computes, a segment at a time: the last query sees every key, each before it one key less."""
    assert window_size == (-1, 0)
    outputs = []
    for i in range(len(query_ends) - 1):
        (q0, q1), (k0, k1) = query_ends[i : i + 2].tolist(), key_ends[i : i + 2].tolist()
        assert q1 - q0 <= longest_query and k1 - k0 <= longest_key
        seen = torch.arange(k1 - k0)[None] <= torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        q, k, v = (each.transpose(0, 1)[None] for each in (query[q0:q1], key[k0:k1], value[k0:k1]))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_ragged_segments_see_what_padded_ones_see(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the ragged way all but the kernel, which is CUDA's; tests/gpu runs that."""
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads
    )
    model = LlamaForCausalLM(config).eval()
    use_packed_attention(model)
    sequences, trainable = grouped()
    for batch in microbatches(sequences, trainable, 200):
        tokens, positions = torch.from_numpy(batch.token_ids)[None], torch.from_numpy(batch.position_ids)[None]
        padded, ragged = (
            model.model(
                input_ids=tokens, position_ids=positions, use_cache=False,
                packed_layout=make_layout(batch.segments, torch.device("cpu"), torch.float32, ragged=way),
            ).last_hidden_state
            for way in (False, True)
        )  # fmt: skip
        torch.testing.assert_close(ragged, padded, atol=2e-6, rtol=1e-5)


def test_a_sliding_window_shorter_than_the_batch_is_refused() -> None:
    config = MistralConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                           num_key_value_heads=2, sliding_window=8)  # fmt: skip
    model = MistralForCausalLM(config).eval()
    use_packed_attention(model)

    def run(length: int) -> None:
        layout = make_layout([Segment(0, length)], torch.device("cpu"), torch.float32)
        model.model(input_ids=torch.arange(length)[None], position_ids=torch.arange(length)[None], use_cache=False, packed_layout=layout)

    run(8)
    with pytest.raises(ValueError, match="sliding window of 8 tokens"):
        run(9)
