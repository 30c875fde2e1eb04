"""The `config.json` of a model folder: an architecture that burnish trains, sizes that are numbers, and nothing that names code, a file
or another model. transformers and vLLM follow such names without asking, so a folder with one is refused before either of them reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...envs.pydantic_words import message_of
from ...rpc.urls import shown_value

MODEL_TYPES: Final = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""By architecture, the `model_type` that chooses its code."""

SUPPORTED_ARCHITECTURES: Final = tuple(MODEL_TYPES)
"""Decoder-only architectures with full causal attention: what packing in the learner assumes."""

OWN_ATTENTION: Final = (None, "eager", "sdpa")
"""What `attn_implementation` may be; other words have transformers fetch a kernel."""

REFUSED: Final = {
    "speculators_config": "names another model, which vLLM would load in place of this one",
    "quantization_config": "says that the weights are quantised, which cannot be trained; import the unquantised model",
    "compression_config": "says that the weights are quantised, which cannot be trained; import the unquantised model",
    "configuration_files": "names other files, one of which transformers and vLLM would read in place of this one; remove it",
    "dual_chunk_attention_config": "has vLLM read a further file; remove it",
    "text_config": "holds another config, which vLLM would take in place of this one; give the text model by itself",
}

Size = Annotated[int, Field(gt=0, lt=2**31, strict=True)]


class Sizes(BaseModel):
    """The numbers of a `config.json` that memory, caches and layers are reckoned from."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    max_position_embeddings: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, naming `where` and the key, unless this is the config of a model that burnish trains."""
    check_architecture(config, where)
    (architecture,) = config["architectures"]
    if config.get("model_type") != MODEL_TYPES[architecture]:
        raise ValueError(
            f"{where}: config.json: model_type is {config.get('model_type')!r}; {architecture} is {MODEL_TYPES[architecture]!r}"
        )
    for key in ("attn_implementation", "_attn_implementation"):
        if config.get(key) not in OWN_ATTENTION:
            raise ValueError(f"{where}: config.json: {key} is {config[key]!r}, which may name code to fetch; remove it")
    for key, why in REFUSED.items():
        if config.get(key) is not None:
            raise ValueError(f"{where}: config.json: {key} {why}")
    try:
        sizes = Sizes.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(
            f"{where}: config.json: {first['loc'][0]}: {message_of(first)} (got {shown_value(first['input'], *first['loc'], most=60)})"
        ) from None
    if sizes.head_dim is None and sizes.hidden_size % sizes.num_attention_heads:
        raise ValueError(f"{where}: config.json: hidden_size {sizes.hidden_size} is no multiple of {sizes.num_attention_heads} heads")


def check_architecture(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless the config names one supported architecture."""
    names = config.get("architectures") or ["(none)"]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in SUPPORTED_ARCHITECTURES:
        name = names[0] if isinstance(names, list) and len(names) == 1 else names
        raise ValueError(f"{where}: architecture {name} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding. Every supported architecture keeps them apart where its config does not say."""
    return bool(config.get("tie_word_embeddings", False))


def parameters_of(config: Mapping[str, Any]) -> int:
    """Parameters of a supported architecture by its `config.json` alone, tied weights once.

    Example: a Llama of 32 layers, 4,096 hidden units, 32 heads, 11,008 intermediate units and 32,000 tokens has 6,738,415,616.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"] + 2 * hidden
    match config["architectures"][0]:
        case "Qwen2ForCausalLM":
            layer += queries + 2 * keys  # biases of q, k and v
        case "Qwen3ForCausalLM":
            layer += 2 * head_dim  # norms of q and k
        case _:
            layer += (queries + 2 * keys + hidden) if config.get("attention_bias") else 0
            layer += (2 * config["intermediate_size"] + hidden) if config.get("mlp_bias") else 0
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)
