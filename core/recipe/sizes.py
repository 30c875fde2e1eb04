"""How large a model is, and how much memory each role of a run is expected to need for it.

The memory of a role is the sum of, in bytes:

- learner: `parameters x 16` (float32 weights, gradient and the two moments of AdamW); `x 4` more for the frozen reference that
  `kl_coef > 0` keeps; with bfloat16 products `x 2` more for the copy of the weights that autocast makes; activations
  `microbatch_tokens x layers x hidden x 34 x bytes / 2`, where 34 are the bytes of one token in one layer at 16 bit without attention
  scores (Korthikanti et al. 2022, arXiv 2205.05198), or `x 4 x bytes / 4` when layers are recomputed; logits
  `logit_rows x vocabulary x 4 x 3` (float32 logits, their softmax and gradient).
- engine: `parameters x bytes` of its dtype; the KV cache, `kv_cache_mb` on a CPU, on GPUs room for every sequence that is decoded at once
  at its full length, `2 x layers x kv_heads x head_dim x bytes x max_num_seqs x max_context`. vLLM takes more than that where
  `gpu_memory_fraction` gives it more. With tensor parallelism each GPU holds its part of both. On a CPU, vLLM packs matrices, and the
  vocabulary's once more for a tied model, which costs two of those on top.

Beside these there are, on a CPU, the processes themselves, libraries included. None of this was compared with a run on GPUs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.engine.config import CPU_KV_CACHE_MB, EngineConfig
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.models.folder import count_parameters, parameters_of, weight_files

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINED_BYTES = 16
"""Per parameter: float32 weights, gradient and two Adam moments."""
ACTIVATIONS_PER_BYTE = 17
"""Numbers kept per token, layer and hidden unit for the backward pass: 34 bytes at 16 bit."""
PROCESS_MB = {"learner": 700, "engine": 1500, "ray": 900}
"""Memory of the processes themselves, libraries included."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Dimensions of a model folder. embedding: parameters of the vocabulary matrix. weights_here: whether the weights were counted, or the
    parameters follow from `config.json`."""

    folder: Path
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    weights_here: bool = True

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden


def model_facts(folder: Path) -> ModelFacts:
    """Read a model's dimensions from its files; without weights, its size follows from `config.json`."""
    shape: dict[str, Any] = json.loads((folder / "config.json").read_text())
    here = bool(weight_files(folder))
    heads = shape["num_attention_heads"]
    return ModelFacts(
        folder,
        count_parameters(folder) if here else parameters_of(shape),
        shape["num_hidden_layers"],
        shape["hidden_size"],
        shape["vocab_size"],
        heads,
        shape.get("num_key_value_heads") or heads,
        shape.get("head_dim") or shape["hidden_size"] // heads,
        here,
    )


def learner_bytes(model: ModelFacts, learner: LearnerConfig, reference: bool) -> int:
    """Weights, optimizer, activations and logits of the learner, see above. reference: whether it keeps a frozen copy of the weights."""
    bytes_per_number = BYTES[learner.dtype]
    per_parameter = TRAINED_BYTES + (4 if reference else 0) + (2 if learner.dtype == "bfloat16" else 0)
    per_token = model.layers * model.hidden * (1 if learner.activation_checkpointing else ACTIVATIONS_PER_BYTE) * bytes_per_number
    logits = learner.logit_rows * model.vocabulary * 4 * 3
    return per_parameter * model.parameters + learner.microbatch_tokens * per_token + logits


def engine_bytes(model: ModelFacts, engine: EngineConfig) -> int:
    """Weights and KV cache of one engine, on one GPU where there are several."""
    bytes_per_number = BYTES[engine.resolved_dtype]
    if engine.resolved_device == "cpu":
        cache = (engine.kv_cache_mb or CPU_KV_CACHE_MB) * 1_000_000
        return bytes_per_number * (model.parameters + 2 * model.embedding) + cache
    tokens = engine.max_num_seqs * engine.max_context
    cache = 2 * model.layers * max(model.kv_heads, engine.gpus) * model.head_dim * bytes_per_number * tokens
    return (bytes_per_number * model.parameters + cache) // engine.gpus


def memory_mb(model: ModelFacts, run: ResolvedRun) -> dict[str, int]:
    """Expected memory by role, in MB: of this machine on CPUs; on GPUs of each GPU of the role."""
    placement = run.placement
    learner = round(learner_bytes(model, run.learner, run.rft is not None and run.rft.objective.kl_coef > 0) / 1e6)
    count, each = placement.engines, round(engine_bytes(model, run.engine) / 1e6)
    name = f"{count} engine{'s' if count > 1 else ''}"
    if placement.platform == "cpu":
        return {
            "learner": learner + PROCESS_MB["learner"],
            name: count * (each + PROCESS_MB["engine"]),
            "Ray and its object store": PROCESS_MB["ray"] + placement.object_store_mb,
        }
    return {
        "learner's GPU": learner,
        "each GPU of an engine": each,
    }
