"""Where data files lie: folders, data sets that `datasets` saved, URLs; and how they are packed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from burnish.envs.row_files import files_at, is_there, suffix_of
from burnish.envs.rows import BadRow, read_rows, stem

pytestmark = pytest.mark.unit

ROWS: list[dict[str, Any]] = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def values(place: str | Path) -> list[Any]:
    return [row.problem if isinstance(row, BadRow) else row.value for row in read_rows(place)]


def zstandard(content: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(content, asbytes=True)
    return packed


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)])
def test_packed_files_are_told_by_content(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    named, plain = tmp_path / f"a.jsonl.{suffix}", tmp_path / "a.jsonl"
    named.write_bytes(pack(LINES))
    plain.write_bytes(pack(LINES))  # whatever it is called
    assert values(named) == values(plain) == ROWS
    assert suffix_of(str(named)) == ".jsonl" and stem(named) == "a"
    named.write_bytes(pack(LINES * 50)[:-9])
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{suffix}: (the compressed file )?is damaged or cut short"):
        values(named)


def test_a_folder_is_its_files_in_order_without_what_is_no_row(tmp_path: Path) -> None:
    for i, name in enumerate(("data/part-1.jsonl", "data/part-0.jsonl.gz", "more.csv")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        rows = json.dumps({"n": str(i)}) + "\n" if "jsonl" in name else f"n\n{i}\n"
        file.write_bytes(gzip.compress(rows.encode()) if name.endswith("gz") else rows.encode())
    for name in ("README.md", "LICENSE", ".hidden.jsonl", "_SUCCESS"):
        (tmp_path / name).write_text("no rows")
    assert files_at(str(tmp_path)) == [str(tmp_path / name) for name in ("data/part-0.jsonl.gz", "data/part-1.jsonl", "more.csv")]
    assert values(tmp_path) == [{"n": "1"}, {"n": "0"}, {"n": "2"}]
    (tmp_path / "notes.docx").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.docx: the suffix '\.docx' is unknown"):
        values(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: the folder holds no file of rows"):
        values(tmp_path / "empty")


def save_as_datasets_does(folder: Path, rows: list[dict[str, Any]]) -> None:
    """`Dataset.save_to_disk`: Arrow streams, and a `state.json` that names them."""
    folder.mkdir(parents=True)
    table, names = pyarrow.Table.from_pylist(rows), ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 2), table.slice(2)), strict=True):
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))


def test_a_link_out_of_a_folder_is_refused_and_one_within_or_into_its_cache_is_read(tmp_path: Path) -> None:
    """Whoever filled the folder chose where it leads: what is there would have been read, and trained on."""
    (tmp_path / "secret.txt").write_text("the key")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a text")
    (tmp_path / "data" / "b.txt").symlink_to("a.txt")
    assert len(files_at(str(tmp_path / "data"))) == 2
    for target in (tmp_path / "secret.txt", Path("../secret.txt")):
        (tmp_path / "data" / "notes.txt").symlink_to(target)
        with pytest.raises(ValueError, match=r"notes\.txt is a link that leads out of the folder"):
            files_at(str(tmp_path / "data"))
        (tmp_path / "data" / "notes.txt").unlink()
    (tmp_path / "more").mkdir()
    (tmp_path / "data" / "below").symlink_to("../more")
    with pytest.raises(ValueError, match=r"below is a link that leads out of the folder; copy there what it leads to"):
        files_at(str(tmp_path / "data"))
    (tmp_path / "data" / "below").unlink()
    (tmp_path / "data" / "again").symlink_to(".")
    assert len(files_at(str(tmp_path / "data"))) == 2
    for nowhere in ("gone.txt", "lost"):
        (tmp_path / "data" / "lost").symlink_to(nowhere)
        with pytest.raises(ValueError, match=r"data/lost is a link that leads nowhere"):
            files_at(str(tmp_path / "data"))
        (tmp_path / "data" / "lost").unlink()
    saved, cache = tmp_path / "saved", tmp_path / "datasets--a--b"
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    (saved / "a.arrow").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"a\.arrow is a link that leads out of the folder"):
        files_at(str(saved))
    (cache / "snapshots" / "1f" / "data").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "9a").write_bytes(LINES)
    (cache / "snapshots" / "1f" / "data" / "train.jsonl").symlink_to("../../../blobs/9a")
    for folder in (cache / "snapshots" / "1f", cache / "snapshots" / "1f" / "data"):
        assert values(folder) == ROWS


def test_a_link_to_a_hidden_folder_within_is_followed_and_each_file_is_read_once(tmp_path: Path) -> None:
    def made(name: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a text")
        return tmp_path / name

    volume = tmp_path / "volume"  # as Kubernetes mounts it
    for name in ("train.txt", "more/a.txt", "more/deep/b.txt", "more/_SUCCESS", "README.txt"):
        made(f"volume/..2026_11/{name}")
    for name, target in {"..data": "..2026_11", "train.txt": "..data/train.txt", "more": "..data/more", "licences": "..data/more"}.items():
        (volume / name).symlink_to(target)
    assert files_at(str(volume)) == [str(volume / name) for name in ("licences/a.txt", "licences/deep/b.txt", "train.txt")]
    (volume / "licences").unlink()
    assert files_at(str(volume)) == [str(volume / name) for name in ("more/a.txt", "more/deep/b.txt", "train.txt")]
    (volume / "all").symlink_to("..data")
    assert files_at(str(volume)) == [str(volume / name) for name in ("all/more/a.txt", "all/more/deep/b.txt", "train.txt")]
    (volume / "..2026_11" / "more" / "out.txt").symlink_to(made("secret.txt"))
    with pytest.raises(ValueError, match=r"all/more/out\.txt is a link that leads out of the folder"):
        files_at(str(volume))


def test_folders_whose_links_lead_to_each_other_are_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(24):
        (tmp_path / f"_{i}").mkdir()
        (tmp_path / f"_{i}" / "a.txt").write_text("a text")
        for way in "xyz":
            (tmp_path / f"_{i}" / way).symlink_to(f"../_{(i + 1 + (way == 'z') * 7) % 24}")
    (tmp_path / "first").symlink_to("_0")
    scanned: list[str] = []
    scan = os.scandir

    def counted(path: str) -> Any:
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert len(files_at(str(tmp_path))) == 24 and len(scanned) == 25


def test_a_folder_below_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name in ("locked", "lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", guarded)
    assert files_at(str(tmp_path)) == [str(tmp_path / "a.txt")]
    (tmp_path / "locked").mkdir()
    with pytest.raises(ValueError, match="locked: the folder cannot be read: Permission denied"):
        files_at(str(tmp_path))


def test_what_datasets_saved_is_read_and_its_splits_are_named(tmp_path: Path) -> None:
    save_as_datasets_does(tmp_path / "all" / "train", ROWS)
    save_as_datasets_does(tmp_path / "all" / "test", ROWS[:2])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = list(read_rows(tmp_path / "all" / "train"))
    assert values(tmp_path / "all" / "train") == ROWS
    assert found[2].where == f"{tmp_path}/all/train/data-00001-of-00002.arrow:1"
    with pytest.raises(ValueError, match=r"several splits; name one of them: .*/all/test, .*/all/train"):
        values(tmp_path / "all")


@pytest.mark.parametrize("names", ['[{"filename": "../secret.arrow"}]', '[{"filename": "/etc/passwd"}]', "[]", "[7]", '"x"'])
def test_a_data_set_names_no_file_outside_its_folder(tmp_path: Path, names: str) -> None:
    (tmp_path / "state.json").write_text(f'{{"_data_files": {names}}}')
    with pytest.raises(ValueError, match=r"state\.json: (must name files of its own folder|is not what)"):
        files_at(str(tmp_path))


def test_an_arrow_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"\xff\xff\xff\xffnothing")
    with pytest.raises(ValueError, match=r"a\.arrow: the file cannot be read after row 0"):
        values(tmp_path / "a.arrow")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_urls_are_read_as_files_are(name: str) -> None:
    url = f"memory://rows-test/{name}"
    with fsspec.open(url, "wb") as file:
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
        else:
            file.write(gzip.compress(LINES) if name.endswith("gz") else LINES)
    assert is_there(url) and values(url) == ROWS
    assert next(iter(read_rows(url))).where == f"{url}:1"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("reference://x/a.jsonl", "reference:// is not read; known are file://, s3://"),
        ("simplecache::memory://a.jsonl", "there is no such file"),
        ("memory://rows-test/none.jsonl", "there is no such file"),
        ("memory://a/b.exe", "the suffix '.exe' is unknown"),
    ],
)
def test_what_a_url_may_not_be(url: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        values(url)
    assert says in str(caught.value)
