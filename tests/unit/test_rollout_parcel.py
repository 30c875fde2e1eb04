"""What a run sends to nodes that do not have its folder: which files, where they arrive, and that they are what was announced."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.rollout.sent_files import moved
from burnish.rollout.transport import parcel as parcels
from burnish.rollout.transport.parcel import FOLDER, MODEL, Parcel, Read, SentFile, place_of_arrival, receive, sources_of
from burnish.rollout.worker import WorkerSetup

pytestmark = pytest.mark.unit

WAIT_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, a plug-in beside it, and a model elsewhere."""
    for place in ("here/mine.py", "here/lists/a.txt", "here/lists/deep/b.txt", "other/mine.py", "model/config.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    return tmp_path / "here"


def listed(sources: dict[str, Path]) -> tuple[SentFile, ...]:
    contents = {place: path.read_bytes() for place, path in sources.items()}
    return tuple(SentFile(place, len(data), hashlib.sha256(data).hexdigest()) for place, data in contents.items())


def test_files_arrive_in_their_relative_places_and_code_from_elsewhere_in_one_of_its_own(folder: Path, tmp_path: Path) -> None:
    code = [str(folder / "mine.py"), str(tmp_path / "other" / "mine.py")]
    sources = sources_of(tmp_path / "model", folder, code, ["lists", "./lists/../mine.py"])
    (elsewhere,) = [place for place in sources if place.startswith("outside/")]
    assert sources == {
        "model/config.json": tmp_path / "model/config.json",
        "folder/mine.py": folder / "mine.py",
        elsewhere: tmp_path / "other/mine.py",
        "folder/lists/a.txt": folder / "lists/a.txt",
        "folder/lists/deep/b.txt": folder / "lists/deep/b.txt",
    }
    asked: list[tuple[str, int]] = []

    def read(place: str, at: int, size: int) -> bytes:
        asked.append((place, at))
        return sources[place].read_bytes()[at : at + 7]  # as little at once as it likes

    arrived = receive(listed(sources), read, tmp_path / "node" / "digest", WAIT_S)
    assert {place: (arrived / place).read_bytes() for place in sources} == {place: path.read_bytes() for place, path in sources.items()}
    assert ("model/config.json", 7) in asked
    asked.clear()
    assert receive(listed(sources), read, arrived, WAIT_S) == arrived and not asked, "what is there is not fetched again"
    parcel = Parcel("server", "node", listed(sources), {str(path): place for place, path in sources.items()}, 60.0)
    setup = moved(WorkerSetup(tmp_path / "model", "a/B-v0", plugins=(code[1],), modules=(code[0], "mine.module")), parcel, arrived)
    assert (setup.model, setup.folder) == (arrived / MODEL, str(arrived / FOLDER))
    assert setup.plugins == (str(arrived / elsewhere),)
    assert setup.modules == (str(arrived / "folder/mine.py"), "mine.module")


def cut(data: bytes) -> Read:
    """A reader of one file that has other content by now."""
    return lambda place, at, size: data[at : at + size]


def test_a_file_that_changed_on_its_way_is_refused_and_nothing_of_it_is_left(folder: Path, tmp_path: Path) -> None:
    files = listed(sources_of(tmp_path / "model", folder, [], ["mine.py"]))
    for data in (b"here/mine.px", b"here", b""):
        with pytest.raises(ValueError, match=r"folder/mine\.py changed while it was sent"):
            receive(files[1:], cut(data), tmp_path / "node" / "digest", WAIT_S)
        assert sorted(path.name for path in (tmp_path / "node").iterdir()) == ["digest.used", "lock"]


def test_what_lies_there_already_is_held_to_what_was_announced(folder: Path, tmp_path: Path) -> None:
    """Whoever could write into the folder of Ray's session put code there beforehand, under the digest of what would be sent."""
    sources = sources_of(tmp_path / "model", folder, [], ["mine.py"])
    files, into = listed(sources), tmp_path / "node" / "digest"

    def read(place: str, at: int, size: int) -> bytes:
        return sources[place].read_bytes()[at : at + size]

    into.mkdir(parents=True)
    into.parent.chmod(0o700)
    damages: list[Callable[[Path], object]] = [lambda file: file.write_text("here/evil.py"), Path.unlink]
    for damage in damages:
        (into / "folder").mkdir(exist_ok=True)
        (into / "folder/mine.py").touch()
        damage(into / "folder/mine.py")
        assert receive(files, read, into, WAIT_S) == into and (into / "folder/mine.py").read_text() == "here/mine.py"
        os.close(parcels._HELD.pop())  # the process has ended


def test_what_a_living_engine_has_stays_under_it_and_another_gets_a_copy_beside(folder: Path, tmp_path: Path) -> None:
    """An environment writes to a file that was sent; the engine that plays it runs in that folder, and reads more of it later."""
    sources = sources_of(tmp_path / "model", folder, [], ["lists"])
    files, into = listed(sources), tmp_path / "node" / "digest"

    def read(place: str, at: int, size: int) -> bytes:
        return sources[place].read_bytes()[at : at + size]

    first = receive(files, read, into, WAIT_S)
    (first / "folder/lists/a.txt").write_text("played")
    places = [receive(files, read, into, WAIT_S) for _ in range(3)]
    assert places == [into.with_name("digest-1")] * 3, "one copy, which is not fetched again either"
    assert (first / "folder/lists/a.txt").read_text() == "played" and (first / "model/config.json").is_file()
    assert (places[0] / "folder/lists/a.txt").read_text() == "here/lists/a.txt"


def test_what_python_keeps_beside_code_is_not_sent(folder: Path, tmp_path: Path) -> None:
    """It would be rewritten where it arrives, for sources have another time there: what arrived would not be what was announced."""
    for place in ("lists/__pycache__", "lists/deep/__pycache__"):
        (folder / place).mkdir()
        (folder / place / "a.cpython-311.pyc").touch()
    assert not any("__pycache__" in place for place in sources_of(tmp_path / "model", folder, [], ["lists"]))


@pytest.mark.parametrize("kind", ["another's", "for all", "a link"])
def test_a_folder_that_others_may_write_into_takes_no_files(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, node = listed(sources_of(tmp_path / "model", folder, [], ["mine.py"])), tmp_path / "node"
    if kind == "a link":
        (tmp_path / "mine").mkdir(mode=0o700)
        node.symlink_to(tmp_path / "mine")
    else:
        node.mkdir()
        node.chmod(0o777 if kind == "for all" else 0o700)
    if kind == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ValueError, match="node is not this user's alone"):
        receive(files, lambda place, at, size: pytest.fail("nothing is fetched"), node / "digest", WAIT_S)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_that_others_may_put_another_in_the_place_of_takes_no_files(depth: int, folder: Path, tmp_path: Path) -> None:
    """Ray's session lies in folders of mode 0777: whoever may rename one there puts code of theirs where it is run."""
    sources = sources_of(tmp_path / "model", folder, [], ["mine.py"])
    node = tmp_path / "open" / "deep" / "node"
    node.parent.mkdir(parents=True)
    above = node.parents[depth - 1]
    above.chmod(0o777)
    with pytest.raises(ValueError, match=rf"{above}: others may rename what lies there"):
        receive(listed(sources), lambda place, at, size: pytest.fail("nothing is fetched"), node / "digest", WAIT_S)
    above.chmod(0o1777)
    (tmp_path / "link").symlink_to(node.parent)
    arrived = receive(
        listed(sources), lambda place, at, size: sources[place].read_bytes()[at : at + size], tmp_path / "link/node/d", WAIT_S
    )
    assert arrived == node / "d", "a link might lead elsewhere later"


def test_what_any_run_sends_arrives_in_one_folder_of_this_user_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert place_of_arrival() == tmp_path / f"burnish-files-{os.geteuid()}"


def test_engines_of_a_node_that_start_at_once_fetch_the_files_once(folder: Path, tmp_path: Path) -> None:
    sources = sources_of(tmp_path / "model", folder, [], ["mine.py"])
    files, into, asked = listed(sources), tmp_path / "node" / "digest", list[str]()

    def read(place: str, at: int, size: int) -> bytes:
        asked.append(place)
        return sources[place].read_bytes()[at : at + size]

    with ThreadPoolExecutor(4) as engines:
        assert [*engines.map(lambda _: receive(files, read, into, WAIT_S), range(4))] == [into] * 4
    assert sorted(asked) == sorted(sources)


def test_another_process_is_waited_for_as_long_as_it_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, node = listed(sources_of(tmp_path / "model", folder, [], ["mine.py"])), tmp_path / "node"
    node.mkdir(mode=0o700)
    lock = os.open(node / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 5.0
        if clock[0] <= 1000:
            os.utime(lock, (0, clock[0]))  # a piece has come

    monkeypatch.setattr(parcels, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    with pytest.raises(TimeoutError, match="another process of this node has fetched nothing of what a run sends for 120 s"):
        receive(files, lambda place, at, size: pytest.fail("the other one does"), node / "digest", 60.0)
    assert 1120 < clock[0] < 1140
    os.close(lock)


def test_what_no_process_has_any_more_is_removed_by_the_next_that_comes(folder: Path, tmp_path: Path) -> None:
    sources = sources_of(tmp_path / "model", folder, [], ["mine.py"])
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom burnish.rollout.transport.parcel import SentFile, receive\n"
        "digest = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'\n"
        "receive([SentFile('model/a', 3, digest)], lambda place, at, size: b'abc', Path(sys.argv[1]), 60.0)\n"
        "print('here', flush=True)\nsys.stdin.read()"
    )

    def arrived() -> set[str]:
        return {path.name for path in (tmp_path / "node").iterdir() if path.is_dir()}

    def read(place: str, at: int, size: int) -> bytes:
        return sources[place].read_bytes()[at : at + size]

    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "node" / "old"], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "here\n"
        (tmp_path / "node" / "old.draft").mkdir()
        receive(listed(sources), read, tmp_path / "node" / "new", WAIT_S)
        assert arrived() == {"old", "old.draft", "new"}, "another run has it"
        other.stdin.close()
        other.wait(30)
    receive(listed(sources), read, tmp_path / "node" / "new", WAIT_S)
    assert arrived() == {"new"}


@pytest.mark.parametrize(
    ("name", "why"),
    [("gone.txt", "gone.txt is not in"), ("../other", r"\.\./other is not in .*give its path from there"), ("/etc/hosts", "is not in")],
)
def test_what_is_not_in_the_folder_is_not_sent(folder: Path, tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"resources\.send: .*{why}"):
        sources_of(tmp_path / "model", folder, [], [name])


def test_a_folder_of_too_many_files_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "MOST_FILES", 1)
    with pytest.raises(ValueError, match=r"resources\.send: lists holds more than 1 files and folders"):
        sources_of(tmp_path / "model", folder, [], ["lists"])


def test_a_link_to_a_folder_is_followed_or_named(folder: Path, tmp_path: Path) -> None:
    link = folder / "lists" / "current"
    link.symlink_to("deep")
    sources = sources_of(tmp_path / "model", folder, [], ["lists"])
    assert sorted(sources)[:3] == ["folder/lists/a.txt", "folder/lists/current/b.txt", "folder/lists/deep/b.txt"]
    assert sources["folder/lists/current/b.txt"].read_text() == "here/lists/deep/b.txt"
    other = tmp_path / "model" / "old"
    for place in (tmp_path / "other", folder / "lists", folder):
        for lying in (link, other):
            lying.unlink(missing_ok=True)
            lying.symlink_to(place)
            with pytest.raises(ValueError, match=rf"{lying} is a link out of the folder, or to one that it is in"):
                sources_of(tmp_path / "model", folder, [], ["lists"])
            lying.unlink()
    link.symlink_to("deep")
    (folder / "lists" / "deep" / "again").symlink_to("../current")
    with pytest.raises(ValueError, match=r"resources\.send: lists: .*again is a link out of the folder, or to one that it is in"):
        sources_of(tmp_path / "model", folder, [], ["lists"])


def test_links_that_lead_to_folders_on_ever_more_ways_come_to_an_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two links in each folder to the next: thirty of them are a thousand million ways, and hold no file."""
    for at in range(31):
        (folder / "lists" / f"d{at}").mkdir()
    for at in range(30):
        for name in "ab":
            (folder / "lists" / f"d{at}" / name).symlink_to(f"../d{at + 1}")
    looked, scandir = [0], os.scandir

    def counted(at: Path) -> Any:
        looked[0] += 1
        return scandir(at)

    monkeypatch.setattr(parcels, "MOST_FILES", 500)
    monkeypatch.setattr(os, "scandir", counted)
    with pytest.raises(ValueError, match=r"resources\.send: lists holds more than 500 files and folders"):
        sources_of(tmp_path / "model", folder, [], ["lists"])
    assert looked[0] <= 502


CLUSTER = {"ray_address": "auto", "shared_folder": False}
GUARD = {"use": "burnish/guardrail-v1", "name": "guard", "args": {"policy": "policy.toml"}}


def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any], **more: Any) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").touch()
    (tmp_path / "lists").mkdir(exist_ok=True)
    data = {"name": "b", "model": "m", "environment": "burnish/Arithmetic-v0", "rft": {"steps": 1}, "resources": resources, **more}
    try:
        config_from_data(data)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ({"shared_folder": False}, "shared_folder has no effect without ray_address"),
        ({"ray_address": "auto", "send": ["lists"]}, "send has no effect where every node has the folder"),
        ({**CLUSTER, "learners": 2, "trusted_network": True}, "trusted_network has no effect with shared_folder = false"),
        ({**CLUSTER, "send": ["lost"]}, "resources.send: lost is not in"),
        ({**CLUSTER, "send": ["/etc/hosts"]}, "resources.send: /etc/hosts is not in"),
        ({**CLUSTER, "send": ["../elsewhere"]}, "give its path from there"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any], why: str) -> None:
    assert why in problems(tmp_path, monkeypatch, resources)


def test_a_file_that_a_reward_names_has_to_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = problems(tmp_path, monkeypatch, CLUSTER, rewards=[GUARD])
    assert "rewards.0.args.policy: policy.toml is on no other node; add it to resources.send" in said
    assert problems(tmp_path, monkeypatch, {**CLUSTER, "send": ["policy.toml"]}, rewards=[GUARD]) == ""
    assert problems(tmp_path, monkeypatch, {"ray_address": "auto"}, rewards=[GUARD]) == ""
    elsewhere = {**GUARD, "args": {"policy": str(tmp_path / "policy.toml")}}
    assert "is on no other node; name a file in" in problems(tmp_path, monkeypatch, {**CLUSTER, "send": ["lists"]}, rewards=[elsewhere])


ANSWER = {"address": "verifiers.example:50051", "tls": {"ca": "ca.pem"}, "token_file": "token"}
LAMBDA = {"use": "burnish/reward-lambda-v1", "name": "own", "args": {"handler": "handler.py:lambda_handler"}}
JUDGED = {"verifier": "h.example:1?ca=ca.pem&token_file=token", "name": "judged"}
GAME = {"id": "FrozenLake-v1", "describe": "words.py:describe", "read_action": "apart.words:read"}
CLASSIFIER = '[[detectors]]\nuse = "burnish/classifier-v1"\nname = "a"\ncategory = "c"\nargs = {model = "attacks", digest = "D"}\n'
SUITE = 'id = "a/b-v1"\nabout = "a"\nrows = "rows.jsonl"\n[[rewards]]\nuse = "a/b-v1"\nargs = {file = "lists/a.txt"}\n'


@pytest.mark.parametrize(
    ("files", "more"),
    [
        (["ca.pem", "token"], {"services": {"answer": ANSWER}, "rewards": [{"verifier": "service:answer"}]}),
        (["ca.pem", "token"], {"rewards": [JUDGED]}),
        (["handler.py"], {"rewards": [LAMBDA]}),
        (["apart/words.py", "words.py"], {"environment": "burnish/Gymnasium-v0", "environment_args": GAME}),
        (["apart/orders/__init__.py"], {"environment": "apart.orders:mine/Orders-v0"}),
        (["pack/__init__.py", "pack/tools.py"], {"environment": "pack.tools:mine/Orders-v0"}),
        (["lists/deep"], {"environment_args": {"words": "./lists/deep"}}),
        (["attacks", "policy.toml"], {"rewards": [GUARD]}),
        (["lists/a.txt"], {"retention": {"suites": ["suite.toml"]}}),
    ],
)
def test_whatever_file_an_engine_reads_or_imports_has_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], more: dict[str, Any]
) -> None:
    code, read = (
        "handler.py words.py apart/words.py apart/orders/__init__.py pack/__init__.py pack/tools.py service.py",
        "ca.pem token lists/a.txt lists/deep/a attacks/a",
    )
    for place in (*code.split(), *read.split()):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "policy.toml").write_text(f'id = "mine/policy-v1"\n{CLASSIFIER}')
    (tmp_path / "suite.toml").write_text(SUITE)
    said = problems(tmp_path, monkeypatch, CLUSTER, **more)
    told = [line.rpartition(" is on no other node; add it to resources.send")[0] for line in said.splitlines()]
    assert sorted(line.rpartition(": ")[2] for line in told) == files, said
    assert problems(tmp_path, monkeypatch, {**CLUSTER, "send": files}, **more) == ""


def test_a_module_that_is_installed_and_a_file_of_the_environment_are_there_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy.py", "mine.py"):
        (tmp_path / name).touch()
    installed = {"id": "FrozenLake-v1", "describe": "numpy:array2string"}
    assert problems(tmp_path, monkeypatch, CLUSTER, environment="burnish/Gymnasium-v0", environment_args=installed) == ""
    assert problems(tmp_path, monkeypatch, CLUSTER, environment="mine.py:mine/Orders-v0") == ""


def test_what_only_the_node_of_the_run_reads_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogs" / "mine").mkdir(parents=True)
    for name in ("own.jsonl", "judge.py"):
        (tmp_path / name).touch()
    blend = {"own_percent": 50, "curated": {"a": 100}, "catalog": "catalogs/mine"}
    learned = {"sft": {"steps": 1, "own": ["own.jsonl"], "blend": blend}, "services": {"tls": {"verifier": "judge.py:judge"}}}
    assert "no other node" not in problems(tmp_path, monkeypatch, CLUSTER, **learned)


def test_a_recipe_says_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    data = {"name": "b", "model": "m", "environment": "burnish/Arithmetic-v0", "rft": {}, "resources": {**CLUSTER, "send": ["lists"]}}
    placement = resolve(config_from_data(data)).placement
    assert (placement.shared_folder, placement.send) == (False, ("lists",))
