"""The files of a model folder, whoever made it: what they may say, and that each fault of one is a line that names it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from burnish.recipe.sizes import model_facts
from burnish.rollout.tokenizer import load_tokenizer
from burnish.trainer.models.config_file import MODEL_TYPES, check_config
from burnish.trainer.models.folder import check_links, check_model_folder, stop_token_ids
from burnish.trainer.models.importing import ModelSize, import_model, new_model

pytestmark = pytest.mark.unit

SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text to train on"], folder, SIZE)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPECULATORS = {"algorithms": [{"proposal_methods": [{"speculative_tokens": 1}]}], "verifier": {"name_or_path": "someone/else"}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speculators_config": SPECULATORS, "speculators_model_type": "eagle3"}, "speculators_config names another model"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation is 'someone/kernel', which may name code to fetch"),
        ({"attn_implementation": {"": "someone/kernel"}}, "which may name code to fetch"),
        ({"_attn_implementation": "flash_attention_2"}, "_attn_implementation is 'flash_attention_2'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config says that the weights are quantised"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files names other files"),
        ({"text_config": {"hidden_size": 64}}, "text_config holds another config"),
        ({"compression_config": {}}, "compression_config says that the weights are quantised"),
        ({"model_type": "medusa"}, "model_type is 'medusa'; LlamaForCausalLM is 'llama'"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"architectures": "LlamaForCausalLM"}, "architecture LlamaForCausalLM is not supported"),
        ({"architectures": 5}, "architecture 5 is not supported"),
        ({"architectures": ["LlamaForCausalLM", "EagleModel"]}, "is not supported"),
        ({"num_attention_heads": 0}, "num_attention_heads: must be greater than 0 (got 0)"),
        ({"num_attention_heads": 7}, "hidden_size 32 is no multiple of 7 heads"),
        ({"hidden_size": 10**30}, "hidden_size: must be less than 2147483648"),
        ({"vocab_size": "many"}, "vocab_size: must be an integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers: must be an integer"),
        ({"head_dim": [1]}, "head_dim: must be an integer"),
    ],
)
def test_a_config_that_names_code_or_another_model_or_no_size_is_refused(copy: Path, tmp_path: Path, changes: Any, says: str) -> None:
    """transformers and vLLM follow such a name: vLLM asked the hub for "someone/else", and loads it in place of the folder's model."""
    edit(copy / "config.json", **({"head_dim": None} if "num_attention_heads" in changes else {}), **changes)
    for refuse in (lambda: check_model_folder(copy), lambda: import_model(copy, tmp_path / "imported")):
        with pytest.raises(ValueError) as caught:
            refuse()
        assert says in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])
def test_a_config_without_a_size_is_refused(copy: Path, key: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: {key}: is required"):
        check_model_folder(copy)


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_the_model_type_of_an_architecture_is_that_of_transformers(architecture: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MODEL_TYPES[architecture]] == architecture


def test_what_models_come_with_is_taken(copy: Path) -> None:
    extra = {"attn_implementation": None, "_attn_implementation": "sdpa", "_name_or_path": "x", "rope_theta": 1e4, "pretraining_tp": 1}
    edit(copy / "config.json", **extra)
    check_model_folder(copy)
    assert model_facts(copy).hidden == 32


@pytest.mark.parametrize("eos", [{}, "x", [None], 1.5, True])
def test_an_end_of_sequence_that_is_no_id_is_refused(copy: Path, eos: Any) -> None:
    edit(copy / "generation_config.json", eos_token_id=eos)
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is .*; it must be a token's id"):
        stop_token_ids(copy)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(copy: Path, index: str, tmp_path: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(index)
    for refuse in (lambda: check_model_folder(copy), lambda: import_model(copy, tmp_path / "imported")):
        with pytest.raises(ValueError, match=r"index\.json must hold a weight_map"):
            refuse()


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokenizer.json", "{}"), ("tokenizer.json", ""), ("tokenizer_config.json", '{"a":' * 5000), ("tokenizer_config.json", "[]")],
)
def test_a_tokenizer_that_cannot_be_read_is_a_line_that_names_it(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=f"the tokenizer of {copy} cannot be loaded: "):
        load_tokenizer(copy)


PANICS = {
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
}


@pytest.mark.parametrize("field", PANICS)
def test_a_tokenizer_over_which_its_library_panics_is_a_line_that_names_it(copy: Path, field: str) -> None:
    """A panic is no `Exception`, and one of the two comes only when the tokenizer is used."""
    said = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**said, field: PANICS[field]}))
    with pytest.raises(ValueError, match=f"the tokenizer of {copy} cannot be loaded: PanicException: "):
        load_tokenizer(copy)
    (copy / "burnish.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded.*: PanicException: "):
        import_model(copy, copy.parent / "imported")


def test_a_pipe_or_a_folder_among_the_weights_is_no_weight_file(copy: Path) -> None:
    """Opening a pipe waits for its other end for ever."""
    weights = copy / "model.safetensors"
    os.mkfifo(copy / "model-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00002\.safetensors is a pipe or a device, not a file"):
        check_model_folder(copy)
    (copy / "model-00002.safetensors").unlink()
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ValueError, match="its weights are missing"):
        check_model_folder(copy)


def test_a_snapshot_of_the_hub_is_whole_with_its_blobs_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    """A folder of somebody's that happens to lie in one called snapshots does not reach what lies beside that."""
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    shutil.copytree(tiny, snapshot)
    shutil.move(snapshot / "config.json", cache / "blobs" / "abcd")
    (snapshot / "config.json").symlink_to(Path("../../blobs/abcd"))
    check_links(snapshot)
    (cache / "secret.txt").write_text("mine")
    (snapshot / "chat_template.jinja").unlink()
    (snapshot / "chat_template.jinja").symlink_to(cache / "secret.txt")
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        check_links(snapshot)


def test_the_config_is_checked_whole(tiny: Path) -> None:
    check_config(json.loads((tiny / "config.json").read_text()), "here")


@pytest.mark.parametrize(
    "name",
    ["config.4.0.0.json", "tokenizer.4.0.0.json", "consolidated.safetensors", "tekken.json", "hf_quant_config.json", "modules.json",
     "processor_config.json", "chat_template.json"],
)  # fmt: skip
def test_a_file_that_would_be_read_in_place_of_the_checked_ones_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / "burnish.json").unlink()
    shutil.copyfile(copy / "config.json", copy / name)
    for take in (lambda: check_model_folder(copy), lambda: import_model(copy, tmp_path / "out")):
        with pytest.raises(ValueError, match=f"holds {name}, which would be read in place of its checked files"):
            take()


@pytest.mark.parametrize("name", ["params.json", "preprocessor_config.json", "video_preprocessor_config.json"])
def test_what_lies_in_a_snapshot_and_is_read_in_place_of_nothing_is_left_where_it_is(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / "burnish.json").unlink()
    tokenizer = load_tokenizer(copy)
    sound = {"processor_class": "Qwen2AudioProcessor", "feature_extractor_type": "WhisperFeatureExtractor"}
    (copy / name).write_text(json.dumps({"dim": 4096, "vocab_size": 1, **sound, "chat_template": "another"}))
    check_model_folder(copy)
    with contextlib.suppress(ValueError, OSError):  # vLLM asks whatever processor there is for its template, before the tokenizer
        asked = AutoProcessor.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)
        assert getattr(asked, "chat_template", None) in (None, tokenizer.chat_template)
    again = load_tokenizer(copy)
    assert (again.chat_template, again.get_vocab()) == (tokenizer.chat_template, tokenizer.get_vocab())
    import_model(copy, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists(), "nobody has looked at it"


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("tokenizer_config.json", {"fast_tokenizer_files": ["OUTSIDE"]}, "fast_tokenizer_files has the tokenizer read from elsewhere"),
        ("tokenizer_config.json", {"vocab_file": "OUTSIDE"}, "vocab_file has the tokenizer read from elsewhere"),
        ("tokenizer_config.json", {"init_inputs": ["OUTSIDE"]}, "init_inputs has the tokenizer read from elsewhere"),
        ("special_tokens_map.json", {"tokenizer_file": "OUTSIDE"}, "'tokenizer_file' names no token"),
    ],
)
def test_a_tokenizer_is_read_from_its_own_folder(
    file: str, changes: dict[str, Any], says: str, copy: Path, tmp_path: Path, opened: list[str]
) -> None:
    outside = tmp_path / "outside" / "tokenizer.4.0.0.json"
    outside.parent.mkdir()
    shutil.copyfile(copy / "tokenizer.json", outside)
    said = json.loads((copy / file).read_text()) if (copy / file).is_file() else {}
    (copy / file).write_text(json.dumps({**said, **changes}).replace("OUTSIDE", str(outside)))
    opened.clear()
    takes: list[Callable[[Path], Any]] = [check_model_folder, load_tokenizer]
    for take in takes:
        with pytest.raises(ValueError, match=says):
            take(copy)
    assert not [name for name in opened if "outside" in name]


@pytest.mark.parametrize("kind", ["Unigram", "BPE", "added"])
def test_a_token_that_would_end_the_process_is_refused_before_it_is_loaded(kind: str, copy: Path, tmp_path: Path) -> None:
    file, long = copy / "tokenizer.json", "a" * 10_001
    said = json.loads(file.read_text())
    if kind == "Unigram":
        said["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [long, -1.0]]}
    elif kind == "BPE":
        said["model"]["vocab"][long] = len(said["model"]["vocab"])
    else:
        said["added_tokens"].append({**said["added_tokens"][0], "content": long})
    file.write_text(json.dumps(said))
    takes: list[Callable[[Path], Any]] = [check_model_folder, load_tokenizer, lambda copy: import_model(copy, tmp_path / "out")]
    for take in takes:
        with pytest.raises(ValueError, match=r"tokenizer\.json has a token of 10,001 letters, which no model has"):
            take(copy)


EVIL, GOOD = ('"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["%s",-1.0]]}' % ("a" * many) for many in (400_000, 1))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (f"{EVIL},{GOOD}", "the key 'model' stands there twice"),
        (f'"x":{"1" * 5000},{EVIL}', "Exceeds the limit"),
        (f'"x":{"[" * 100_000}{"]" * 100_000},{EVIL}', "maximum recursion depth"),
    ],
    ids=["twice", "a long number", "deep"],
)
def test_a_tokenizer_that_two_parsers_read_differently_is_refused_before_it_is_loaded(head: str, says: str, copy: Path) -> None:
    """One looks for long tokens, and the other makes what frees them one call within the other."""
    rest = "".join(f'"{key}":null,' for key in ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    (copy / "tokenizer.json").write_text(f'{{"version":"1.0","added_tokens":[],{rest}{head}}}')
    code = (
        "import sys\nfrom pathlib import Path\nfrom burnish.rollout.tokenizer import load_tokenizer\n"
        "try: load_tokenizer(Path(sys.argv[1]))\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, check=True, timeout=100)
    assert f"the tokenizer of {copy} cannot be loaded: tokenizer.json is not valid JSON: {says}" in done.stdout
    with pytest.raises(ValueError, match=says):
        check_model_folder(copy)


def test_pickled_weights_come_with_a_tokenizer_that_is_looked_at(copy: Path, tmp_path: Path) -> None:
    """transformers would make one of `tokenizer.model`, or of `vocab.json` and `merges.txt`."""
    for name in ("burnish.json", "tokenizer.json", "model.safetensors"):
        (copy / name).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; save its fast tokenizer next to the weights"):
        import_model(copy, tmp_path / "out")


@pytest.mark.parametrize("said", ["[]", "{", '{"model": 5}', '{"model": {"vocab": 5}, "added_tokens": 5}', '{"model": {"vocab": [5, []]}}'])
def test_a_tokenizer_of_another_form_is_said_so(said: str, copy: Path) -> None:
    (copy / "tokenizer.json").write_text(said)
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be loaded: "):
        load_tokenizer(copy)


def test_a_tokenizer_of_more_values_than_any_has_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rollout.tokenizer_files.MOST_VALUES", 100)
    with pytest.raises(ValueError, match=r"tokenizer\.json has more than 100 values"):
        load_tokenizer(copy)


HOOKED: list[list[str]] = []


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that are opened from here on."""
    if not HOOKED:
        HOOKED.append([])
        sys.addaudithook(lambda event, args: HOOKED[0].append(str(args[0])) if event == "open" else None)
    HOOKED[0].clear()
    yield HOOKED[0]


def gguf(*, kind: int = 8, inner: int = 0, count: int = 1, pairs: int = 1, tensors: int = 0) -> bytes:
    """A head with one value: an array of `count` values of kind `inner` (9), or a text that claims to be so long (8)."""
    head = struct.pack("<4sIQQQ4sI", b"GGUF", 3, tensors, pairs, 4, b"name", kind)
    return head + (struct.pack("<I", inner) if kind == 9 else b"") + struct.pack("<Q", count)


@pytest.mark.parametrize(
    "head",
    [
        gguf(kind=9, inner=0, count=2**52), gguf(kind=9, inner=8, count=2**62), gguf(kind=9, inner=9, count=2**40), gguf(count=2**63),
        gguf(kind=8, count=0, pairs=2**50), gguf(kind=8, count=0, tensors=2**50), gguf(kind=77), gguf(kind=9, inner=8, count=1)[:20],
    ],
)  # fmt: skip
def test_a_gguf_that_claims_more_than_it_holds_is_refused_before_it_is_read(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(head + bytes(19 if len(head) > 20 else 0))
    with pytest.raises(ValueError, match=r"a\.gguf: the GGUF "):
        import_model(tmp_path / "a.gguf", tmp_path / "out")


def test_a_gguf_lists_no_text_longer_than_any_token(tmp_path: Path) -> None:
    head = gguf(kind=9, inner=8, count=1)
    for length, says in (
        (10_001, r"a\.gguf: the GGUF lists a text of 10,001 bytes, longer than any model's token"),
        (10_000, "cannot be loaded"),
    ):
        (tmp_path / "a.gguf").write_bytes(head + struct.pack("<Q", length) + b"a" * length)
        with pytest.raises(ValueError, match=says):
            import_model(tmp_path / "a.gguf", tmp_path / "out")
