"""The sync proof in bfloat16, where learner and engine round much more: equal weights pass, and what was not loaded is found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.rollout.engine import make_engine
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.weights import PARITY_BOUNDS, SyncProofError, check_parity, snapshot, sync_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

BOUND = PARITY_BOUNDS["bfloat16"]


def logprobs(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    tokens = torch.tensor([ids])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])[:, 0].numpy()


def test_equal_weights_pass_and_stale_ones_do_not(tiny_model: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():  # far from the uniform distribution that random weights give
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 8.0)
    random = np.random.default_rng(0)
    sequences = [[int(token) for token in random.integers(5, 290, 48)] for _ in range(4)]
    engine = make_engine(EngineConfig(backend="vllm-inprocess", dtype="bfloat16", max_context=128, kv_cache_mb=64), tiny_model, "rounded")

    async def prove() -> None:
        weights = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
        await sync_weights(engine, snapshot(1, weights))
        scored = np.concatenate(await engine.score(sequences))
        expected = np.concatenate([logprobs(model, ids) for ids in sequences])
        versions = np.full(len(expected), 1, np.int32)
        assert check_parity("rounded", 1, expected, scored, versions, BOUND).mean > 1e-4, "bfloat16 rounds"
        with pytest.raises(SyncProofError):
            check_parity("rounded", 1, expected, scored, versions)  # float32's bound is not for bfloat16
        with torch.no_grad():  # the learner goes on alone
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.sign(torch.randn_like(parameter, dtype=torch.float32)))
        with pytest.raises(SyncProofError, match="computes with other weights"):
            check_parity("rounded", 1, np.concatenate([logprobs(model, ids) for ids in sequences]), scored, versions, BOUND)
        # One tensor that differs in its last bit moves no log-probability beyond rounding; its checksum differs.
        sent = snapshot(2, weights)
        stale = dict(weights)
        stale["model.norm.weight"] = np.nextafter(weights["model.norm.weight"], np.float32(9), dtype=np.float32)
        load = engine._load  # type: ignore[attr-defined]
        engine._load = lambda tensors: load(stale.items())  # type: ignore[attr-defined]
        with pytest.raises(SyncProofError, match=r"changed model\.norm\.weight"):
            await sync_weights(engine, sent)

    try:
        asyncio.run(prove())
    finally:
        asyncio.run(engine.close())
