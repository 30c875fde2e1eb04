"""What a plug-in file may import: what is installed, then what lies beside it; nothing that merely lies where burnish is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from burnish.envs.named import load_function
from burnish.envs.registry import load_plugin
from burnish.trainer.models.sources import download_wheel

pytestmark = pytest.mark.unit


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Somebody's own folder with a plug-in and what it imports, and another, where burnish is started, whose files would leave a mark."""
    own, sent = tmp_path / "own", tmp_path / "sent"
    own.mkdir()
    sent.mkdir()
    (own / "mine.py").write_text("import beside_a_plugin\n")
    (own / "beside_a_plugin.py").write_text("")
    for name in ("sent_along", "timeit"):
        (sent / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef f(): ...\n")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(sent))])
    monkeypatch.chdir(sent)
    before = set(sys.modules)
    yield own, sent
    for name in set(sys.modules) - before:
        if name.startswith("burnish_plugin_") or name in ("beside_a_plugin", "sent_along"):
            del sys.modules[name]


def test_a_plug_in_brings_its_own_folder_and_not_the_one_that_burnish_is_started_in(places: tuple[Path, Path]) -> None:
    own, sent = places
    load_plugin(own / "mine.py")
    assert sys.path[-1] == str(own) and str(sent) not in sys.path
    assert find_spec("sent_along") is None


def test_a_module_that_is_named_is_found_here_after_all_that_is_installed(places: tuple[Path, Path]) -> None:
    _, sent = places
    load_function("sent_along:f", "field")
    assert sys.path[-1] == str(sent)
    sys.modules.pop("timeit", None)
    installed = find_spec("timeit")
    assert installed is not None and installed.origin is not None and not Path(installed.origin).is_relative_to(sent)


def test_a_plug_in_below_the_folder_imports_what_lies_in_it(places: tuple[Path, Path]) -> None:
    _, sent = places
    (sent / "envs").mkdir()
    (sent / "envs" / "world.py").write_text("import sent_along\n")
    load_plugin("envs/world.py")
    assert sys.path[-2:] == [str(sent / "envs"), str(sent)]


def test_files_of_like_names_are_different_modules(places: tuple[Path, Path]) -> None:
    _, sent = places
    alike = ("my-reward.py", "my_reward.py", "a.b/c.py", "a/b/c.py")
    for name in alike:
        (sent / name).parent.mkdir(parents=True, exist_ok=True)
        (sent / name).write_text(f"def f(): return {name!r}\n")
    assert [load_function(f"{name}:f", "field")() for name in alike] == list(alike)
    assert load_plugin("my-reward.py") == load_plugin(sent / "my-reward.py")


def test_pip_is_the_installed_one(places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sent = places
    (sent / "pip.py").write_text((sent / "sent_along.py").read_text())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match="pip could not download"):
        download_wheel("pypi:nothing-of-the-kind==1", tmp_path)
    assert not (tmp_path / "ran").exists()
