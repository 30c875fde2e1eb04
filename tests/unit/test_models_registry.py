"""The registry: a model's identity is the digest of its files, its manifest says where it comes from, and a broken copy is no model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.cli.models import lineage_named
from burnish.trainer.models.card import model_card
from burnish.trainer.models.finding import find_model, verified_model
from burnish.trainer.models.folder import Origin, write_model_folder
from burnish.trainer.models.importing import ModelSize, import_model, new_model
from burnish.trainer.models.manifest import Manifest, lineage_of, read_manifest, verify_digests

pytestmark = pytest.mark.unit

SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text to train on"], folder, SIZE)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy under a models folder of its own, to be damaged."""
    shutil.copytree(tiny, tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def trained(base: Path, out: Path, shift: float, **origin: Any) -> Manifest:
    """A model made from `base`, its weights moved by a constant."""
    weights = {name: tensor + np.float32(shift) for name, tensor in load_file(base / "model.safetensors").items()}
    return write_model_folder(weights, base, out, Origin(**{"name": out.name, "stage": "sft", "source": f"run/{out.name}", **origin}))


def put(memory: Any, folder: Path) -> None:
    for file in folder.iterdir():
        memory.pipe(f"/bucket/tiny/{file.name}", file.read_bytes())


def burnish(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_digest_is_what_sha256sum_says_of_the_files(tiny: Path) -> None:
    listing = "LC_ALL=C ls | grep -vx -e burnish.json -e README.md | LC_ALL=C sort | xargs sha256sum | sha256sum"
    said = subprocess.run(["bash", "-c", listing], cwd=tiny, capture_output=True, text=True, check=True, timeout=60).stdout
    assert read_manifest(tiny).digest == said.split()[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "),
            "config.json is not the file",
        ),
        (lambda f: (f / "generation_config.json").unlink(), "lacks generation_config.json"),
        (lambda f: (f / "vocab.txt").write_text("x"), "holds vocab.txt, which its burnish.json does not record"),
        (lambda f: (f / "my notes.md").write_text("x"), "holds 'my notes.md', which its burnish.json does not record"),
        (lambda f: (f / "onnx").mkdir(), "holds onnx, which its burnish.json does not record"),
        (lambda f: (f / "release").write_text("x"), "holds release, which its burnish.json does not record"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_no_model(damage: Any, message: str, copy: Path, tmp_path: Path) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=message):
        verified_model(copy)
    with pytest.raises(ValueError, match=message):
        import_model(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model (1).safetensors", "model~.safetensors", "-model.safetensors", "é.safetensors"])
def test_a_second_copy_of_the_weights_is_refused_whatever_it_is_called(name: str, copy: Path) -> None:
    """vLLM reads `*.safetensors` in the order of their names, so the last of them decides; only names of letters were looked at."""
    shutil.copyfile(copy / "model.safetensors", copy / name)
    with pytest.raises(ValueError, match=r"does not record"):
        verify_digests(copy)
    (copy / "burnish.json").unlink()
    with pytest.raises(ValueError, match="as a second copy of a file of weights is called; remove it"):
        find_model(copy)


def test_a_chat_template_in_a_folder_below_is_refused(copy: Path) -> None:
    """transformers takes one called `default` in place of the model's own."""
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "default.jinja").write_text("mine")
    with pytest.raises(ValueError, match=r"holds additional_chat_templates, which its burnish\.json does not record"):
        verify_digests(copy)
    with pytest.raises(ValueError, match="holds additional_chat_templates, which would be read in place of its checked files"):
        find_model(copy)


def test_the_card_and_hidden_files_are_not_part_of_the_model(copy: Path) -> None:
    digest = read_manifest(copy).digest
    (copy / "README.md").write_text("mine")
    (copy / ".gitattributes").write_text("x")
    verified = verify_digests(copy)
    assert verified is not None and verified.digest == digest


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", ".hidden", "a/b", "a\nb"])
def test_a_manifest_names_no_file_elsewhere(name: str, copy: Path) -> None:
    data = json.loads((copy / "burnish.json").read_text())
    data["files"][name] = "0" * 64
    (copy / "burnish.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"burnish.json is not a valid manifest: files\."):
        verify_digests(copy)


def test_a_manifest_of_another_form_says_what_to_do(copy: Path) -> None:
    data = json.loads((copy / "burnish.json").read_text())
    (copy / "burnish.json").write_text(json.dumps({**data, "format": 1}))
    with pytest.raises(ValueError, match="of a form that this burnish does not read; remove it and import the folder again"):
        read_manifest(copy)


def test_a_lineage_is_told_once_and_oldest_first(tiny: Path, tmp_path: Path) -> None:
    base = read_manifest(tiny)
    one = trained(tiny, tmp_path / "one", 0.1)
    two = trained(tmp_path / "one", tmp_path / "two", 0.1)
    other = trained(tiny, tmp_path / "other", 0.2)
    both = trained(tmp_path / "two", tmp_path / "both", 0.3, parents=(two, other))
    assert (one.parents, two.parents, both.parents) == ((base.digest,), (one.digest,), (two.digest, other.digest))
    assert [ancestor.name for ancestor in both.lineage] == ["tiny", "one", "two", "other"]
    assert lineage_of([both])[-1].parents == both.parents
    lines = burnish("models", "lineage", tmp_path / "both").splitlines()
    assert [line.split()[0] for line in lines] == ["both", "two", "one", "tiny", "other", "tiny"]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6, 2, 4]


def test_a_lineage_of_merges_of_merges_is_as_long_as_it_has_models(copy: Path) -> None:
    """17 pairs, each merged from both of the pair before, made 262,143 lines; a chain indents no further than anybody looks."""

    def digest(name: str) -> str:
        return sha256(name.encode()).hexdigest()

    def ancestor(name: str, *parents: str) -> dict[str, Any]:
        return {"digest": digest(name), "name": name, "stage": "sft", "source": "", "parents": [digest(one) for one in parents]}

    pairs = [ancestor(f"{i}{side}", *([f"{i - 1}a", f"{i - 1}b"] if i else [])) for i in range(17) for side in "ab"]
    chain = [ancestor(f"c{i}", *([f"c{i - 1}"] if i else [])) for i in range(3000)]
    data = json.loads((copy / "burnish.json").read_text())
    for lineage, parents in ((pairs, ["16a", "16b"]), (chain, ["c2999"])):
        said = {**data, "lineage": lineage, "parents": [digest(one) for one in parents]}
        (copy / "burnish.json").write_text(json.dumps(said))
        lines = lineage_named(str(copy), copy).lines
        assert {line.split()[0] for line in lines} == {"tiny", *(one["name"] for one in lineage)}
        assert len(lines) == 1 + len(parents) + sum(len(one["parents"]) for one in lineage)
        assert max(len(line) for line in lines) < 200


def test_a_lineage_without_a_parent_it_names_is_refused(copy: Path) -> None:
    data = json.loads((copy / "burnish.json").read_text())
    (copy / "burnish.json").write_text(json.dumps({**data, "parents": ["0" * 64]}))
    with pytest.raises(ValueError, match="lacks the parent 000000000000"):
        read_manifest(copy)


def test_a_digest_finds_and_pins_a_model(copy: Path, tmp_path: Path) -> None:
    models, digest = copy.parent, read_manifest(copy).digest
    other = trained(copy, models / "other", 0.1)
    assert find_model(f"sha256:{digest[:8]}", models) == copy.resolve()
    assert find_model(f"tiny@sha256:{digest}", models) == copy.resolve()
    with pytest.raises(ValueError, match=f"tiny is sha256:{digest[:12]}, not sha256:{other.digest[:8]}"):
        find_model(f"tiny@sha256:{other.digest[:8]}", models)
    with pytest.raises(ValueError, match=r"no model in .* has a digest that begins with 00000000"):
        find_model("sha256:00000000", models)
    with pytest.raises(ValueError, match="8 to 64 characters"):
        find_model("sha256:ab", models)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        find_model(f"sha256:{digest}", models)
    assert find_model(f"sha256:{digest}", models, need_sound=False) == copy.resolve(), "whoever checks it is to say what is wrong"


def test_a_manifest_that_cannot_be_read_hides_no_other_model(copy: Path) -> None:
    models, digest = copy.parent, read_manifest(copy).digest
    for name in ("bad", "odd\x1b[2J"):
        (models / name).mkdir()
        (models / name / "burnish.json").write_text('{"format": 2}')
    listed = CliRunner().invoke(app, ["models", "list", "--models-dir", str(models)])
    assert listed.exit_code == 1 and "tiny" in listed.stdout and "bad" not in listed.stdout
    first, second = listed.stderr.splitlines()
    assert first.startswith(f"bad cannot be read: {models}/bad/burnish.json is not a valid manifest: ") and "odd\\x1b[2J cannot" in second
    told = CliRunner().invoke(app, ["models", "list", "--models-dir", str(models), "--json"])
    rows = {row["name"]: row for row in json.loads(told.stdout)}
    assert rows["tiny"]["digest"] == digest and "not a valid manifest" in rows["bad"]["error"]
    assert find_model(f"sha256:{digest[:12]}", models) == copy.resolve()
    with pytest.raises(ValueError, match=r"that can be read \(bad, odd\x1b\[2J cannot\) has a digest that begins with 00000000;"):
        find_model("sha256:00000000", models)
    shutil.rmtree(copy)
    alone = CliRunner().invoke(app, ["models", "list", "--models-dir", str(models)])
    assert (alone.exit_code, alone.stdout) == (1, "")


def test_the_same_model_under_another_name_is_said(copy: Path) -> None:
    said = burnish("models", "import", copy, "--name", "again", "--models-dir", copy.parent)
    assert "it is the same model as tiny" in said.splitlines()


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_model_comes_from_a_url(scheme: str, tiny: Path, tmp_path: Path, memory: Any) -> None:
    url = f"file://{tiny}"
    if scheme == "memory":
        put(memory, tiny)
        memory.pipe("/bucket/tiny/train.py", b"raise SystemExit")
        url = "memory://bucket/tiny"
    manifest = import_model(url, tmp_path / "out")
    assert (manifest.digest, manifest.source) == (read_manifest(tiny).digest, url)
    assert not (tmp_path / "out" / "train.py").exists()


def test_an_interrupted_copy_is_no_model(tiny: Path, tmp_path: Path, memory: Any) -> None:
    put(memory, tiny)
    data = memory.cat("/bucket/tiny/tokenizer.json")
    memory.pipe("/bucket/tiny/tokenizer.json", data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"tokenizer.json is not the file that its burnish.json records"):
        import_model("memory://bucket/tiny", tmp_path / "models" / "out")
    assert list((tmp_path / "models").iterdir()) == [], "neither the model nor a part of it"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", "cannot be read"),
        ("nosuch://x/y", "Protocol not known|cannot be read"),
        ("https://me:secret@host/model", "holds a user name or password in its URL"),
    ],
)
def test_a_url_that_gives_no_model_says_so(url: str, message: str, tmp_path: Path, memory: Any) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        import_model(url, tmp_path / "out")
    assert "secret@" not in str(refusal.value)


def test_a_card_says_what_the_manifest_says(tiny: Path) -> None:
    manifest = read_manifest(tiny).model_copy(
        update={"licence": "apache-2.0", "metrics": {"loss": 1.25}, "name": "x](http://evil) <script>\n# head"}
    )
    card = model_card(manifest)
    front = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in card.split("---")[1].strip().splitlines())}
    assert (front["license"], front["tags"]) == ("apache-2.0", ["burnish", "none"])
    assert f"sha256:{manifest.digest}" in card and "| loss | 1.25 |" in card
    assert "\n# head" not in card and "](http" not in card and "<script>" not in card


def test_a_licence_is_read_from_the_card_of_a_model_that_has_no_manifest(copy: Path, tmp_path: Path) -> None:
    (copy / "burnish.json").unlink()
    (copy / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Somebody's model\n")
    manifest = import_model(copy, tmp_path / "out")
    assert manifest.licence == "mit"
    assert trained(tmp_path / "out", tmp_path / "next", 0.1).licence == "mit", "what is made from it has it too"
    assert import_model(copy, tmp_path / "given", licence="mine").licence == "mine"


def test_the_commands_list_show_and_delete(copy: Path) -> None:
    models, manifest = copy.parent, read_manifest(copy)
    assert manifest.digest[:12] in burnish("models", "list", "--models-dir", models)
    shown = burnish("models", "show", "tiny", "--models-dir", models)
    assert f"sha256:{manifest.digest}" in shown and f"sha256:{manifest.files['config.json']}" in shown
    (models / "mine").mkdir()
    done = CliRunner().invoke(app, ["models", "delete", "mine", "--models-dir", str(models)])
    assert done.exit_code == 2 and (models / "mine").is_dir(), "a folder that no manifest says is a model stays"
    for outside in ("../models/tiny", "."):
        assert CliRunner().invoke(app, ["models", "delete", outside, "--models-dir", str(models)]).exit_code == 2
    assert "removed" in burnish("models", "delete", "tiny", "--models-dir", models)
    assert [path.name for path in models.iterdir()] == ["mine"]
