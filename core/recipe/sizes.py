"""How large a model is, and how much memory each role of a run is expected to need for it.

The memory of a role is the sum of the following, in bytes; of the learner, that of the phase that needs most.

- learner: `parameters x 16` (float32 weights, gradient and the two moments of AdamW); `x 4` more for the frozen reference that
  `kl_coef > 0` keeps, and dpo; with adapters (`lora`) all of this of the adapters, `rank x (inputs + outputs)` of each layer
  that has one, and `parameters x 4` for the base; a critic (`[rft.critic]`) is a whole model, `x 16` again. With several learners, each
  has its slice of all that, and `x 8` (weights and gradient) of one decoder layer and two vocabulary matrices (embedding and output layer)
  while they compute. With bfloat16 products `x 2` more for the copy of the weights that autocast makes; activations of
  `microbatch_tokens`, see `activation_bytes`; logits `logit_rows x vocabulary x 12` (float32 logits, their softmax and gradient), `x 14`
  with bfloat16 products.
- engine: `parameters x bytes` of its dtype; the KV cache, `kv_cache_mb` on a CPU, on GPUs room for every sequence that is decoded at once
  at its full length, `2 x layers x kv_heads x head_dim x bytes x max_num_seqs x max_context`. vLLM takes more than that where
  `gpu_memory_fraction` gives it more. With tensor parallelism each GPU holds its part of both. On a CPU, vLLM packs matrices, and the
  vocabulary's once more for a tied model, which costs two of those on top.

On a CPU there are beside these the processes themselves, libraries included, and the backward pass: `BACKWARD_LAYERS` times what a layer
keeps, gradients and what the allocator holds back. Measured as the most that processes had resident, in MB (expected): a learner in a
process of its own, nano (3.3 M parameters, 4 layers) with `microbatch_tokens` of 256, 1024 and 4096: 784, 905, 1,477 (725, 876, 1,480);
16 layers of width 192 with 2048: 1,470 (1,385); of runs of a model of 0.1 M parameters, an engine with 16 MB of KV cache: 942 to 1,014
(1,066); of nano with 128 MB: 1,300 (1,192). Larger models were not measured. One learner on a GPU in bfloat16 was within 4 % of this in
the table of docs/gpus.md, and 14 % off with the smallest microbatch; an engine's GPUs were not compared with anything, and of several
learners only the arithmetic was checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.recipe.phase_run import PhaseRun
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.engine.config import CPU_KV_CACHE_MB, EngineConfig
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig
from burnish.trainer.models.config_file import parameters_of
from burnish.trainer.models.folder import count_parameters, weight_files

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINED_BYTES = 16
"""Per parameter: float32 weights, gradient and two Adam moments."""
PROCESS_MB = {"learner": 620, "engine": 1050, "vllm-async": 800, "ray": 900}
"""Memory of the processes themselves, libraries included; "vllm-async" is that of the process that it has beside the engine's."""
BACKWARD_LAYERS = 4
"""What a backward pass takes on a CPU beside what the forward pass keeps, as so many layers of the latter."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Dimensions of a model folder. embedding: parameters of the vocabulary matrix. intermediate: width of the layers between attentions.
    weights_here: whether the weights were counted, or the parameters follow from `config.json`."""

    folder: Path
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
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
        shape["intermediate_size"],
        here,
    )


def adapter_parameters(model: ModelFacts, lora: LoRAConfig) -> int:
    """Parameters of the adapters: `rank x (inputs + outputs)` of every layer that gets one."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    ends = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": queries} | dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj"), model.intermediate
    )
    return model.layers * lora.rank * sum(model.hidden + ends[target] for target in lora.targets)


def activation_bytes(model: ModelFacts, learner: LearnerConfig) -> int:
    """What one token of a microbatch keeps for the backward pass, counted over the tensors that autograd saves in a Llama's layer.

    The MLP keeps four rows of its width. Norms, residuals, queries and attention's output keep rows of the hidden size, in float32 where
    nothing is cast, which autocast leaves most of them in; keys and values are fewer where several heads share one. With
    `activation_checkpointing` each layer keeps its input in float32, and one at a time is computed again.
    """
    layer = _layer_bytes(model, learner)
    return 4 * model.layers * model.hidden + layer if learner.activation_checkpointing else model.layers * layer


def _layer_bytes(model: ModelFacts, learner: LearnerConfig) -> int:
    width, shared = BYTES[learner.dtype], model.kv_heads / model.heads
    rows = 36 + 16 * shared if learner.dtype == "float32" else 30 + 8 * shared
    return round(model.hidden * rows) + 4 * width * model.intermediate


def learner_bytes(model: ModelFacts, learner: LearnerConfig, reference: bool, learners: int = 1, critic: bool = False) -> int:
    """Weights, optimizer, activations and logits of each learner, see above. reference: whether what is trained is kept a second time.
    critic: whether there is a value model beside it."""
    trained = model.parameters if learner.lora is None else adapter_parameters(model, learner.lora)
    frozen = 0 if learner.lora is None else 4 * model.parameters
    held = (TRAINED_BYTES + (4 if reference else 0)) * trained + frozen + (TRAINED_BYTES * model.parameters if critic else 0)
    if learners > 1:
        layer = max(0, model.parameters - model.embedding) // model.layers
        held = held // learners + 8 * (layer + 2 * model.embedding)
    cast = 2 * model.parameters * (2 if critic else 1) if learner.dtype == "bfloat16" else 0
    logits = learner.logit_rows * model.vocabulary * (12 if learner.dtype == "float32" else 14)
    return held + cast + learner.microbatch_tokens * activation_bytes(model, learner) + logits


def _phase_bytes(model: ModelFacts, run: ResolvedRun, phase: PhaseRun, learners: int) -> int:
    learner = run.beginning_with(phase.name).learner
    return learner_bytes(model, learner, phase.keeps_reference, learners, phase.critic is not None)


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
    learners = placement.learners
    learner = round(max(_phase_bytes(model, run, phase, learners) for phase in run.phases) / 1e6)
    whose = "learner" if learners == 1 else f"{learners} learners"
    count, each = placement.engines, round(engine_bytes(model, run.engine) / 1e6)
    name = f"{count} engine{'s' if count > 1 else ''}"
    if placement.platform == "cpu":
        backward = round(BACKWARD_LAYERS * run.learner.microbatch_tokens * _layer_bytes(model, run.learner) / 1e6)
        beside = PROCESS_MB["vllm-async"] if run.engine.resolved_backend == "vllm-async" else 0
        return {
            whose: learners * (learner + backward + PROCESS_MB["learner"]),
            name: count * (each + PROCESS_MB["engine"] + beside),
            "Ray and its object store": PROCESS_MB["ray"] + placement.object_store_mb,
        }
    return {
        "learner's GPU" if learners == 1 else "each GPU of a learner": learner,
        "each GPU of an engine": each,
    }
