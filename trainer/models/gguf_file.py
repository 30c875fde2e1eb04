"""A Llama as a GGUF file, the form of llama.cpp: weights under its names, its order of rotary rows, and the tokenizer as metadata.

Nothing is rounded: float32, float16 and bfloat16 stay what they are. What the form cannot say the same is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .config_file import ties_embeddings
from .folder import read_json, stop_token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ARCHITECTURE: Final = "LlamaForCausalLM"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens."""
LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LLAMA3_SPLIT: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_gguf(folder: Path, out: Path, name: str, licence: str | None) -> None:
    """Write the model in `folder` as the file `out`. Raises ValueError naming what a GGUF of a Llama cannot say."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = read_json(folder / "config.json")
    tokenizer = _checked_tokenizer(folder)
    _check_config(config, folder)
    writer = GGUFWriter(out, "llama")
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, tokenizer, config)
    for gguf_name, tensor in _tensors(folder, config):
        if str(tensor.dtype) == "torch.bfloat16" and tensor.ndim > 1:
            data, kind = quantize(tensor.float().numpy(), GGMLQuantizationType.BF16), GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name, data, raw_dtype=kind)
        else:  # norms are kept in float32 by everything that reads them
            writer.add_tensor(gguf_name, (tensor if tensor.ndim > 1 else tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotary_order(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection as llama.cpp rotates them: pairs side by side, where transformers has halves of a head."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape).contiguous()


def pre_tokenizer_of(tokenizer: Mapping[str, Any]) -> str | None:
    """What llama.cpp calls the way a `tokenizer.json` splits text before merging, None for a way that is not known here."""
    own = tokenizer.get("pre_tokenizer") or {}
    steps = own.get("pretokenizers", []) if own.get("type") == "Sequence" else [own]
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if len(steps) != 2 or steps[1].get("type") != "ByteLevel" or steps[1].get("add_prefix_space"):
        return None
    first, with_words = steps[0], steps[1].get("use_regex", True)
    pattern = (first.get("pattern") or {}).get("Regex")
    digits = (first.get("type") == "Digits" and first.get("individual_digits")) or pattern == r"\p{N}"
    if digits and with_words:
        return "smollm"
    return "llama-bpe" if pattern == LLAMA3_SPLIT and not with_words else None


def split_as_read(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer that transformers made of a GGUF split text as the file says, where transformers does not: "smollm" sets every digit
    apart before words are found, which shows where two spaces precede a number."""
    from gguf import GGUFReader
    from tokenizers import Regex, pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        digits = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    architecture = config["architectures"][0]
    if architecture != ARCHITECTURE:
        raise ValueError(f"{folder}: {architecture} is not exported as GGUF, only {ARCHITECTURE} is; export a folder and convert that")
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError(f"{folder}: scaled rotary positions ({scaling.get('rope_type')}) are not exported as GGUF; export a folder")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{folder}: {key} is not exported as GGUF; export a folder and convert that")


def _checked_tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = read_json(folder / "tokenizer.json")
    kind = (tokenizer.get("model") or {}).get("type")
    if kind != "BPE" or pre_tokenizer_of(tokenizer) is None:
        raise ValueError(
            f"{folder}: its tokenizer ({kind}, or the way it splits text) is not exported as GGUF; export a folder and convert that"
        )
    return tokenizer


def _add_shape(writer: Any, config: Mapping[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope_theta(config)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotary angles, wherever a config of this or an earlier transformers has it."""
    given = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta")
    return float(10_000.0 if given is None else given)


def _add_tokenizer(writer: Any, folder: Path, tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    vocabulary = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    tokens, types = [], []
    for index in range(config["vocab_size"]):
        if index in added:
            tokens.append(added[index]["content"])
            types.append(CONTROL if added[index]["special"] else USER_DEFINED)
        else:
            tokens.append(vocabulary.get(index, f"[PAD{index}]"))
            types.append(NORMAL if index in vocabulary else UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    ids = {content: index for index, content in enumerate(tokens)}
    stops = stop_token_ids(folder)
    writer.add_eos_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    for key, add in (("bos_token", writer.add_bos_token_id), ("pad_token", writer.add_pad_token_id)):
        token = settings.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if content in ids:
            add(ids[content])
    writer.add_chat_template(chat_template(folder))


def chat_template(folder: Path) -> str:
    """The chat template of a model folder, from the file of its own or from `tokenizer_config.json`. Raises ValueError without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    config = folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    if not isinstance(found, str):
        raise ValueError(f"{folder} has no chat template, or several; give it one in chat_template.jinja")
    return found


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    from .tensors import Tensors

    heads = config["num_attention_heads"]
    turned = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}
    source = Tensors(folder)
    for name in source.names:
        if name == "lm_head.weight" and ties_embeddings(config):
            continue
        module = name.removesuffix(".weight")
        if module in OUTSIDE:
            yield f"{OUTSIDE[module]}.weight", source.read(name)
            continue
        layer, _, part = module.removeprefix("model.layers.").partition(".")
        if part not in LAYER or not layer.isdigit():
            raise ValueError(f"{folder}: the tensor {name} has no place in a GGUF of a Llama; export a folder and convert that")
        kind, tensor = LAYER[part], source.read(name)
        yield f"blk.{layer}.{kind}.weight", rotary_order(tensor, turned[kind]) if kind in turned else tensor
