"""Adapters beside a base model: which folders are some, and that they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from burnish.rollout.engine.vllm_openai import Adapter, adapter_arguments
from burnish.serving.adapters import find_adapter, find_adapters
from burnish.trainer.models.manifest import weights_sha256

pytestmark = pytest.mark.unit

LAYER = "model.layers.0.self_attn.q_proj"
OUT, IN = 6, 4
Shapes = Mapping[str, tuple[int, ...]]
HALVES: Shapes = {f"base_model.model.{LAYER}.lora_A.weight": (3, IN), f"base_model.model.{LAYER}.lora_B.weight": (OUT, 3)}


def save(file: Path, shapes: Shapes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, file)


def adapter(folder: Path, shapes: Shapes = HALVES, **config: Any) -> Path:
    save(folder / "adapter_model.safetensors", shapes)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, **config}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save(tmp_path / "base" / "model-00001.safetensors", {f"{LAYER}.weight": (OUT, IN)})
    save(tmp_path / "base" / "model-00002.safetensors", {"lm_head.weight": (9, IN)})
    return tmp_path / "base"


def test_an_adapter_is_pefts_folder_or_a_checkpoint_that_has_one(tmp_path: Path, base: Path) -> None:
    own = adapter(tmp_path / "search")
    assert find_adapter(str(own), base) == Adapter(own, 3)
    below = adapter(tmp_path / "checkpoints-rft-40" / "trainer" / "learner")
    (below / "state.json").write_text(json.dumps({"base": weights_sha256(base)}))
    assert find_adapters({"a": str(own), "b": str(tmp_path / "checkpoints-rft-40")}, base) == {"a": Adapter(own, 3), "b": Adapter(below, 3)}
    (below / "state.json").write_text(json.dumps({"base": "0" * 64}))
    with pytest.raises(ValueError, match=r"adapter 'b': .* was trained on another model"):
        find_adapters({"b": str(below)}, base)


A, B = HALVES


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({A: (3, IN)}, "no half of a low-rank adapter"),
        ({A: (3, IN), B: (OUT, 2)}, "fits no layer"),
        ({A: (3, IN + 1), B: (OUT, 3)}, "fits no layer"),
        ({A.replace("q_proj", "x_proj"): (3, IN), B.replace("q_proj", "x_proj"): (OUT, 3)}, "fits no layer"),
        ({**HALVES, "base_model.model.lm_head.weight": (9, IN)}, "no half of a low-rank adapter"),
        ({**HALVES, "base_model.model.lm_head.lora_embedding_A": (3, IN)}, "no half of a low-rank adapter"),
        ({A: (600, IN), B: (OUT, 600)}, "rank 600; at most 512"),
        ({}, "holds no layer"),
    ],
)
def test_what_fits_no_layer_of_the_base_never_reaches_an_engine(tmp_path: Path, base: Path, shapes: Shapes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_adapter(str(adapter(tmp_path / "x", shapes)), base)


def test_what_is_no_adapter_is_said(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="holds no adapter"):
        find_adapter(str(base), base)
    with pytest.raises(ValueError, match="type 'LOHA'"):
        find_adapter(str(adapter(tmp_path / "other", peft_type="LOHA")), base)
    with pytest.raises(ValueError, match="says use_dora, which vLLM does not serve"):
        find_adapter(str(adapter(tmp_path / "dora", use_dora=True)), base)
    with pytest.raises(ValueError, match="says rank 6, by which its weights are scaled, and its layers have 3"):
        find_adapter(str(adapter(tmp_path / "six", r=6)), base)
    assert find_adapter(str(adapter(tmp_path / "mixed", r=6, rank_pattern={"q_proj": 3})), base).rank == 3
    bare = adapter(tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        find_adapter(str(bare), base)
    (bare / "adapter_model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="cannot be read"):
        find_adapter(str(bare), base)
    for text in ("[]", "{", "[" * 100_000):
        (bare / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="JSON"):
            find_adapter(str(bare), base)


def test_vllm_is_told_of_all_adapters_and_room_for_the_widest(tmp_path: Path) -> None:
    assert adapter_arguments({}) == []
    told = adapter_arguments({"m:v1:a": Adapter(tmp_path / "a", 9), "m:v1:b=1": Adapter(tmp_path / "b,c", 1)})
    assert told[:7] == ["--enable-lora", "--max-loras", "3", "--max-cpu-loras", "3", "--max-lora-rank", "16"]
    assert [json.loads(one)["name"] for one in told[8:]] == ["m:v1:a", "m:v1:b=1"]
