"""Adapters that are sent alone: what an engine merges is what the learner would have sent, and nothing else passes for it."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.rollout.engine.config import Dtype
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.engine.layout import shapes_of
from burnish.rollout.transport.adapters import Base
from burnish.rollout.transport.shipment import BucketRef, Form, Receiver, Sender, Shipment
from burnish.rollout.weights import SyncProofError, SyncReceipt, sync_weights
from burnish.trainer.batch import plain_batch
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.objectives.objective import CROSS_ENTROPY

pytestmark = pytest.mark.unit

LORA = LoRAConfig(rank=3, alpha=12, targets=("q_proj", "down_proj"))
LIMIT = 1000
"""Bytes of a bucket, so that there are several."""


def new_model(folder: Path, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.2)  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def trained(folder: Path, lora: LoRAConfig | None = LORA) -> Learner:
    learner = Learner(folder, LearnerConfig(threads=1, lora=lora, optimizer=OptimizerConfig(lr=1e-2)), seed=0)
    random = np.random.default_rng(0)
    for _ in range(3):
        learner.forward_backward(plain_batch([(random.integers(0, 40, 12).astype(np.int32), np.arange(12) > 2)]), CROSS_ENTROPY)
        learner.step()
    return learner


def sent(learner: Learner) -> Shipment:
    """As `LearnerGroup` sends it. References are the buckets themselves."""
    buckets = [replace(bucket, data=bucket.data.copy()) for bucket in learner.adapters(LIMIT)]
    assert len(buckets) > 1
    manifest = {name: sum_ for bucket in buckets for name, sum_ in bucket.manifest().items()}
    sender, parts = Sender(Form(adapters=True)), [BucketRef(bucket) for bucket in buckets]
    assert sender.begin(apart=True) == []
    return sender.finish(learner.version, manifest, parts, "learner's", apart=True, compared=False, frozen=learner.frozen())


def take(receiver: Receiver, shipment: Shipment, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ScriptedEngine, SyncReceipt]:
    engine = ScriptedEngine([[2]], name="e0", shapes=dict(shapes))

    async def go() -> SyncReceipt:
        with receiver.taking(shipment, lambda reference: reference) as weights:
            return await sync_weights(engine, weights)

    return engine, asyncio.run(go())


class Sparing(ScriptedEngine):
    """Its loader asks for the first tensors alone. so_many: how many of them."""

    so_many = 1

    async def update_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        await super().update_weights(itertools.islice(tensors, self.so_many))


@pytest.mark.parametrize("so_many", [0, 1, 5])
def test_a_loader_that_leaves_tensors_out_is_found_though_the_manifest_grows_with_what_it_asks_for(tmp_path: Path, so_many: int) -> None:
    shipment = sent(trained(new_model(tmp_path, tied=True)))
    engine, receiver = Sparing([[2]], name="e0"), Receiver("another", Base(tmp_path, "float32"))
    engine.so_many = so_many

    async def go() -> None:
        with receiver.taking(shipment, lambda reference: reference) as weights:
            await sync_weights(engine, weights)

    with pytest.raises(SyncProofError, match=r"engine e0: the weights of version 3 were not loaded as the learner sent them \(missing "):
        asyncio.run(go())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_merges_what_the_learner_would_have_sent(tmp_path: Path, tied: bool, stored: torch.dtype, dtype: Dtype) -> None:
    learner = trained(new_model(tmp_path, tied, stored))
    whole = {name: array.copy() for bucket in learner.buckets(dtype) for name, array in bucket.tensors()}
    shipment, shapes = sent(learner), {name: array.shape for name, array in whole.items()}
    receiver = Receiver("another", Base(tmp_path, dtype))
    for _ in range(2):
        engine, receipt = take(receiver, shipment, shapes)
        assert {name: (array.dtype, array.tobytes()) for name, array in engine.weights.items()} == {
            name: (array.dtype, array.tobytes()) for name, array in whole.items()
        }
        assert receipt.version == 3 and receipt.tensors == len(whole) and not receipt.delta
        assert receipt.bytes == 4 * 2 * 3 * ((32 + 32) + (48 + 32)), "those of A and B in two layers"


def test_a_base_in_several_files_is_one(tmp_path: Path) -> None:
    folder = new_model(tmp_path, tied=True)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors", {"format": "pt"})
    index = {name: f"model-{names.index(name) % 2}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    learner = trained(folder)
    engine, _ = take(Receiver("another", Base(folder, "float32")), sent(learner), shapes_of(learner.snapshot().manifest))
    assert {name: array.tobytes() for name, array in engine.weights.items()} == {n: a.tobytes() for n, a in learner.weights().items()}


def test_another_base_is_refused_and_named(tmp_path: Path) -> None:
    shipment = sent(trained(new_model(tmp_path / "base", tied=True)))
    other = new_model(tmp_path / "other", tied=True)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    receiver = Receiver("another", Base(other, "float32"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of \d+ tensors are not those of the base .* \(model\.norm\.weight\); give engines"):
            take(receiver, shipment, {})


def rewritten(file: Path, longer: bool = False) -> None:
    """Write another model over a file in its place, as `save_file` does in a folder that is there."""
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    written = save(tensors, {"format": "pt"})
    with file.open("r+b") as stream:
        stream.write(written + bytes(8) if longer else written)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_what_was_proved_of_a_base_is_merged_whatever_becomes_of_the_folder(tmp_path: Path, how: str) -> None:
    learner = trained(new_model(tmp_path / "base", tied=True))
    shipment, folder = sent(learner), shutil.copytree(tmp_path / "base", tmp_path / "engine's")
    receiver = Receiver("another", Base(folder, "float32"))
    take(receiver, shipment, shapes_of(learner.snapshot().manifest))
    if how == "replaced":
        shutil.copy(folder / "model.safetensors", tmp_path / "draft")
        rewritten(tmp_path / "draft")
        (tmp_path / "draft").replace(folder / "model.safetensors")
    else:
        shutil.rmtree(folder)
    engine, _ = take(receiver, shipment, shapes_of(learner.snapshot().manifest))
    assert {name: array.tobytes() for name, array in engine.weights.items()} == {n: a.tobytes() for n, a in learner.weights().items()}


def test_a_base_that_is_rewritten_after_the_first_update_is_proved_again(tmp_path: Path) -> None:
    learner = trained(new_model(tmp_path / "base", tied=True))
    shipment, folder = sent(learner), shutil.copytree(tmp_path / "base", tmp_path / "engine's")
    receiver, shapes = Receiver("another", Base(folder, "float32")), shapes_of(learner.snapshot().manifest)
    take(receiver, shipment, shapes)
    rewritten(folder / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of \d+ tensors are not those of the base .* \(model\.norm\.weight\); give engines"):
            take(receiver, shipment, shapes)
    shutil.copy(tmp_path / "base" / "model.safetensors", folder)
    engine, _ = take(receiver, shipment, shapes)
    assert {name: array.tobytes() for name, array in engine.weights.items()} == {n: a.tobytes() for n, a in learner.weights().items()}


def test_a_base_that_is_rewritten_while_it_is_merged_is_refused(tmp_path: Path) -> None:
    shipment = sent(trained(new_model(tmp_path / "base", tied=True)))
    folder = shutil.copytree(tmp_path / "base", tmp_path / "engine's")
    with Receiver("another", Base(folder, "float32")).taking(shipment, lambda reference: reference) as weights:
        tensors = iter(weights.stream())
        next(tensors)
        rewritten(folder / "model.safetensors", longer=True)
        with pytest.raises(ValueError, match=r"model\.safetensors was rewritten while an engine read it; leave the model"):
            list(tensors)


def changed(shipment: Shipment, how: str) -> Shipment:
    first = shipment.parts[0].bucket
    if how == "lost":
        return replace(shipment, parts=shipment.parts[1:])
    if how == "older":
        data = first.data.copy()
        data[0] += 1
        return replace(shipment, parts=[BucketRef(replace(first, data=data)), *shipment.parts[1:]])
    return replace(shipment, manifest={name: sum_ for name, sum_ in shipment.manifest.items() if "layers.0" in name})


@pytest.mark.parametrize("how", ["lost", "older", "unannounced"])
def test_adapters_that_did_not_come_as_they_were_sent_are_refused(tmp_path: Path, how: str) -> None:
    shipment = sent(trained(new_model(tmp_path, tied=True)))
    with pytest.raises(ValueError, match=r"the adapters of model\.layers\.\S+ .*did not come as the learner sent them \(\d+ tensors\)"):
        take(Receiver("another", Base(tmp_path, "float32")), changed(shipment, how), {})


def test_adapters_of_a_layer_that_is_not_there_are_refused(tmp_path: Path) -> None:
    learner = trained(new_model(tmp_path, tied=True))
    base, adapters = Base(tmp_path, "float32"), dict[str, Any]()
    for bucket in learner.adapters():
        adapters |= {name.replace("layers.1", "layers.7"): array.copy() for name, array in bucket.tensors()}
    base.check(learner.frozen())
    with pytest.raises(ValueError, match=r"has no layer model\.layers\.7\.mlp\.down_proj, model\.layers\.7\.self_attn\.q_proj"):
        list(base.merged(learner.frozen(), adapters))
