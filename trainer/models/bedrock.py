"""The layout that Amazon Bedrock's custom model import takes: one folder of safetensors, config and tokenizer, with the chat template
inside `tokenizer_config.json`, and a config that an older transformers reads. Checked by files alone; nothing is sent anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .finding import MODELS, verified_model
from .folder import (
    WEIGHTS_INDEX,
    Origin,
    atomic_folder,
    copy_model_files,
    copy_weights,
    manifest_of,
    read_json,
    tensor_shapes,
    weight_files,
    write_manifest,
)
from .gguf_file import chat_template, rope_theta
from .importing import no_progress_bars, verify_model
from .manifest import Manifest

TAKEN: Final = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GptOssForCausalLM")
"""Architectures that the service takes, of those that generate text alone."""
DTYPES: Final = ("float32", "float16", "bfloat16")
MOST_BYTES: Final = 200 * 10**9
MOST_CONTEXT: Final = 131_072


def export_bedrock(checkpoint: str | Path, out: Path, models_dir: Path = MODELS) -> Manifest:
    """Write a checkpoint to `out` in the service's layout; it appears once `bedrock_problems` finds none in it.

    Weights are as they are; config and tokenizer config say the same in the words of an older transformers. Raises ValueError when the
    checkpoint is not sound, `out` exists, or the service would not take it.
    """
    source = verified_model(checkpoint, models_dir)
    trained = manifest_of(source)
    with atomic_folder(out) as draft, no_progress_bars():
        copy_model_files(source, draft)
        copy_weights(source, draft)
        _rewrite(draft / "config.json", _older(read_json(source / "config.json")))
        settings = read_json(draft / "tokenizer_config.json") if (draft / "tokenizer_config.json").is_file() else {}
        _rewrite(draft / "tokenizer_config.json", {**settings, "chat_template": chat_template(source)})
        (draft / "chat_template.jinja").unlink(missing_ok=True)
        problems = list(bedrock_problems(draft))
        if problems:
            raise ValueError("\n".join(f"{source} cannot be exported for Bedrock: {problem}" for problem in problems))
        origin = Origin(
            name=out.name,
            stage=trained.stage,
            source=f"bedrock layout of {trained.name}",
            parents=(trained,),
            metrics=trained.metrics,
            template_args=trained.template_args,
        )
        manifest = write_manifest(draft, origin)
        verify_model(draft)
    return manifest


def bedrock_problems(folder: Path) -> Iterator[str]:
    """What the service would refuse a folder for, or would read wrongly, one line each."""
    if not folder.is_dir():
        yield f"there is no folder {folder}"
        return
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            yield f"{name} is missing"
    if (folder / "adapter_config.json").exists():
        yield "it holds an adapter; merge it into its base model"
    if (folder / "config.json").is_file():
        yield from _config_problems(read_json(folder / "config.json"))
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json").get("chat_template")
        if not isinstance(template, str) or not template:
            yield "tokenizer_config.json has no chat_template, without which the Converse API does not take the model"
    yield from _weight_problems(folder)


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures") or ["(none)"]
    if names[0] not in TAKEN:
        yield f"config.json: architecture {names[0]} is not one of {', '.join(TAKEN)}"
    if config.get("torch_dtype") not in DTYPES:
        yield f"config.json: torch_dtype is {config.get('torch_dtype')!r}, not one of {', '.join(DTYPES)}"
    if config.get("quantization_config") is not None:
        yield "config.json: quantised weights are not taken"
    if config.get("auto_map"):
        yield "config.json: auto_map names code, which is not run"
    if int(config.get("max_position_embeddings") or 0) > MOST_CONTEXT:
        yield f"config.json: max_position_embeddings is more than {MOST_CONTEXT:,}"
    if config.get("rope_parameters") and config.get("rope_theta") != rope_theta(config):
        yield "config.json: rope_theta is only in rope_parameters, which an older transformers does not read: it would take 10,000"


def _weight_problems(folder: Path) -> Iterator[str]:
    files = weight_files(folder)
    if not files:
        yield "there are no *.safetensors"
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            shapes |= tensor_shapes(file)
        except ValueError as error:
            yield str(error)
    if len(files) > 1 and not (folder / WEIGHTS_INDEX).is_file():
        yield f"several weight files need {WEIGHTS_INDEX}"
    if (folder / WEIGHTS_INDEX).is_file():
        missing = sorted(set(read_json(folder / WEIGHTS_INDEX).get("weight_map", {})) - set(shapes))
        if missing:
            yield f"{WEIGHTS_INDEX} names {missing[0]}, which no weight file holds"
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        yield f"the weights are {size / 1e9:,.0f} GB, more than {MOST_BYTES / 1e9:,.0f}"
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        yield f"{pickled[0]}: only safetensors are taken"


def _older(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what an older transformers reads beside what this one does."""
    known = {**config, "torch_dtype": config.get("torch_dtype") or config.get("dtype"), "rope_theta": rope_theta(config)}
    scaling = {key: value for key, value in (config.get("rope_parameters") or {}).items() if key != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        known["rope_scaling"] = scaling
    return known


def _rewrite(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
