"""What becomes of models: exports that read back the same, merges and comparisons with numbers computed by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tests.unit.test_models_registry import SIZE, burnish, trained
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.bedrock import bedrock_problems, export_bedrock
from burnish.trainer.models.checkpoints import save_checkpoint
from burnish.trainer.models.comparing import compare_models
from burnish.trainer.models.exporting import export_gguf
from burnish.trainer.models.folder import Origin, write_manifest, write_model_folder
from burnish.trainer.models.gguf_file import rotary_order
from burnish.trainer.models.importing import ModelSize, import_model, new_model
from burnish.trainer.models.manifest import read_manifest
from burnish.trainer.models.merging import linear, merge_models, slerp, task_arithmetic
from burnish.trainer.objectives.objective import CROSS_ENTROPY

pytestmark = pytest.mark.unit

TEXTS = [f"The bore of part {i} measures  {i * 0.37:.3f} mm, isn't it?" for i in range(60)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    new_model(TEXTS, folder, ModelSize(hidden=64, layers=2, heads=2, intermediate=48, vocab_size=320, max_position=128))
    return folder


def test_a_gguf_reads_back_as_the_same_model(base: Path, tmp_path: Path) -> None:
    export_gguf(base, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"], "nothing else is left"
    back = import_model(tmp_path / "out.gguf", tmp_path / "back")
    assert (back.architecture, back.parameters) == ("LlamaForCausalLM", read_manifest(base).parameters)
    own, its = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "back"))
    chat = [{"role": "user", "content": "part 12,  34"}, {"role": "assistant", "content": "12.5"}]
    assert own.apply_chat_template(chat, tokenize=False) == its.apply_chat_template(chat, tokenize=False)
    for text in (*TEXTS, "a  12  b", "<|im_start|>x<|im_end|>"):
        assert own.encode(text) == its.encode(text)
    ids = torch.tensor([own.encode(TEXTS[0])])
    logits = [AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (base, tmp_path / "back")]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_rotary_rows_stand_in_pairs() -> None:
    """One head of size 4: transformers rotates rows (0, 2) and (1, 3), llama.cpp (0, 1) and (2, 3)."""
    rows = torch.arange(8.0)[:, None].repeat(1, 3)
    assert rotary_order(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM is not exported as GGUF"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, r"scaled rotary positions \(llama3\)"),
        ({"attention_bias": True}, "attention_bias is not exported"),
    ],
)
def test_what_a_gguf_cannot_say_is_refused(change: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    write_manifest(tmp_path / "odd", Origin(name="odd", stage="sft", source="x"))
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "odd", tmp_path / "odd.gguf")
    assert not (tmp_path / "odd.gguf").exists()


def test_the_bedrock_layout_holds_the_template_and_what_an_older_config_says(base: Path, tmp_path: Path) -> None:
    manifest = export_bedrock(base, tmp_path / "out")
    assert list(bedrock_problems(tmp_path / "out")) == []
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (base / "chat_template.jinja").read_text()
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["rope_theta"]) == ("float32", 10_000.0)
    assert [one.name for one in manifest.lineage] == ["base"]
    assert "has the layout" in burnish("models", "check", tmp_path / "out", "--layout", "bedrock")


def test_the_bedrock_layout_is_asked_of_a_name_a_digest_and_a_run(base: Path, tmp_path: Path) -> None:
    """What could not be loaded at all is looked at too: that is what is asked."""
    digest = export_bedrock(base, tmp_path / "models" / "out").digest

    def write_model(folder: Path) -> None:
        shutil.copytree(tmp_path / "models" / "out", folder)

    run = tmp_path / "run"
    save_checkpoint(run, "rft", 4, write_model=write_model, write_trainer_state=lambda folder: folder.mkdir(), final=True)
    where = ("--layout", "bedrock", "--models-dir", tmp_path / "models")
    for model in ("out", f"sha256:{digest[:12]}", f"out@sha256:{digest[:12]}", run, run / "checkpoints" / "rft-4"):
        assert "has the layout" in burnish("models", "check", model, *where)
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "models" / "out" / name).unlink()
    done = CliRunner().invoke(app, ["models", "check", "out", *map(str, where)])
    assert done.exit_code == 2 and "out: tokenizer.json is missing" in done.stderr and "there are no *.safetensors" in done.stderr
    done = CliRunner().invoke(app, ["models", "check", "owt", *map(str, where)])
    assert done.exit_code == 2 and "neither a folder nor a model in" in done.stderr and "did you mean 'out'?" in done.stderr


BEDROCK: dict[str, Callable[[Path], object]] = {
    "tokenizer_config.json has no chat_template": lambda f: edit(f / "tokenizer_config.json", chat_template=None),
    "torch_dtype is None": lambda f: edit(f / "config.json", torch_dtype=None),
    "rope_theta is only in rope_parameters": lambda f: edit(f / "config.json", rope_theta=None),
    "architecture GPT2LMHeadModel is not one of": lambda f: edit(f / "config.json", architectures=["GPT2LMHeadModel"]),
    "max_position_embeddings is more than": lambda f: edit(f / "config.json", max_position_embeddings=1_000_000),
    "quantised": lambda f: edit(f / "config.json", quantization_config={"bits": 4}),
    "it holds an adapter": lambda f: (f / "adapter_config.json").write_text("{}"),
    "only safetensors are taken": lambda f: (f / "pytorch_model.bin").write_bytes(b""),
    "tokenizer.json is missing": lambda f: (f / "tokenizer.json").unlink(),
    r"there are no \*.safetensors": lambda f: (f / "model.safetensors").unlink(),
}


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("problem", BEDROCK)
def test_a_layout_that_would_not_be_taken_is_said(problem: str, base: Path, tmp_path: Path) -> None:
    export_bedrock(base, tmp_path / "out")
    BEDROCK[problem](tmp_path / "out")
    found = list(bedrock_problems(tmp_path / "out"))
    assert len(found) == 1 and re.search(problem, found[0])


def test_merges_are_what_their_formulas_say() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert linear(0.25, x, y).tolist() == [0.75, 0.25]
    assert slerp(0.5, x, y).tolist() == pytest.approx([math.sqrt(0.5)] * 2), "half-way round the circle, of length 1"
    assert slerp(1 / 3, x, y).tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    assert slerp(0.25, x, 3 * x).tolist() == [1.5, 0.0], "one direction: a line"
    assert slerp(0.25, x, torch.zeros(2)).tolist() == [0.75, 0.0]
    assert task_arithmetic(0.5, x, y, torch.tensor([1.0, 1.0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("method", "weight", "shift"), [("linear", 0.25, 0.15), ("task-arithmetic", 1.0, 0.4), ("slerp", 0.0, 0.1)])
def test_a_merge_has_both_as_parents(method: Any, weight: float, shift: float, base: Path, tmp_path: Path) -> None:
    """The two lie 0.1 and 0.3 above the base in every weight."""
    one, two = trained(base, tmp_path / "one", 0.1), trained(base, tmp_path / "two", 0.3, stage="rft")
    with_base = {"base": base} if method == "task-arithmetic" else {}
    merged = merge_models(tmp_path / "one", tmp_path / "two", tmp_path / "merged", method=method, weight=weight, **with_base)
    expected = load_file(base / "model.safetensors")
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(tensor, expected[name] + shift, atol=1e-5)
    assert merged.parents[:2] == (one.digest, two.digest)
    assert (merged.stage, merged.lineage[0].name) == ("rft", "base")


def test_models_that_do_not_fit_are_not_merged(base: Path, tmp_path: Path) -> None:
    new_model(TEXTS, tmp_path / "small", SIZE)
    alike = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=262, max_position=64)
    for name, texts in (("lower", TEXTS), ("upper", [text.upper() for text in TEXTS])):
        new_model(texts, tmp_path / name, alike)
    with pytest.raises(ValueError, match="hidden_size is 64 and 32"):
        merge_models(base, tmp_path / "small", tmp_path / "out")
    with pytest.raises(ValueError, match="their tokenizers differ"):
        merge_models(tmp_path / "lower", tmp_path / "upper", tmp_path / "out")
    wrong: dict[str, dict[str, Any]] = {
        "must be from 0 to 1": {"weight": 1.5},
        "needs a base": {"method": "task-arithmetic"},
        "takes no base": {"base": base},
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            merge_models(base, base, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_comparison_measures_each_tensor(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    norm = "model.norm.weight"
    assert (tensors[norm] == 1).all()
    changed = trained(base, tmp_path / "changed", 0.0, metrics={"loss": 2.0})
    save_file({**tensors, norm: tensors[norm] * np.float32(1.5)}, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    write_manifest(tmp_path / "changed", Origin(name="changed", stage="sft", source=changed.source, metrics={"loss": 2.0}))
    found = compare_models(base, tmp_path / "changed")
    assert {change.name: change.relative for change in found.tensors if change.relative} == {norm: pytest.approx(0.5)}
    whole = sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in tensors.values())
    assert found.relative == pytest.approx(math.sqrt(0.25 * 64 / whole))
    assert ("stage", "none", "sft") in list(found.facts) and ("metric loss", "–", "2") in list(found.facts)
    said = burnish("models", "compare", base, tmp_path / "changed")
    assert norm in said and "0.5" in said


def adapted_run(base: Path, run: Path) -> tuple[Learner, TokenBatch]:
    """A run that trained adapters: its learner, and a batch that they were trained on."""
    adapters = LoRAConfig(rank=2, alpha=8, targets=("q_proj", "down_proj"))
    learner = Learner(base, LearnerConfig(threads=1, lora=adapters, optimizer=OptimizerConfig(lr=1e-2)), seed=0)
    random = np.random.default_rng(0)
    batch = plain_batch([(random.integers(3, 280, 12).astype(np.int32), np.arange(12) > 0) for _ in range(3)])
    for _ in range(3):
        learner.forward_backward(batch, CROSS_ENTROPY)
        learner.step()
    save_checkpoint(
        run, "sft", 3, final=True,
        write_model=lambda out: write_model_folder(learner.weights(), base, out, Origin(name="adapted", stage="sft", source="run/sft-3")),
        write_trainer_state=lambda out: learner.save(out / "learner"),
    )  # fmt: skip
    return learner, batch


@pytest.mark.parametrize(("form", "out"), [("folder", "out"), ("bedrock", "out"), ("gguf", "out.gguf")])
def test_an_export_of_a_run_with_adapters_is_the_merged_model(base: Path, tmp_path: Path, form: str, out: str) -> None:
    """It says what the learner said with them, and not what the base says; nothing of it is an adapter."""
    learner, batch = adapted_run(base, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "sft-3" / "trainer" / "learner" / "adapter_model.safetensors").is_file()
    burnish("models", "export", tmp_path / "run", tmp_path / out, "--format", form)
    folder = tmp_path / out
    if form == "gguf":
        import_model(folder, tmp_path / "back")
        folder = tmp_path / "back"
    assert not [path.name for path in folder.iterdir() if "adapter" in path.name]
    exported, untrained = (Learner(one, LearnerConfig(threads=1), seed=0).score(batch).logprobs for one in (folder, base))
    np.testing.assert_allclose(exported, learner.score(batch).logprobs, atol=1e-5)
    assert np.abs(exported - untrained).max() > 1e-2
