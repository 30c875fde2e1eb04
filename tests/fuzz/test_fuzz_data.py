"""A thousand files that are spoiled each in its own way: every good row is kept, every bad one has its place, and the phase is laid out."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from burnish.trainer.data.config import Making
from burnish.trainer.data.forms import Conversation
from burnish.trainer.data.prepared import lay_out
from burnish.trainer.data.sources import Reject, found_in
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.sft import SFTConfig

pytestmark = pytest.mark.fuzz

FILES, ROWS = 1000, 5


def row(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"order {number}?"}, {"role": "assistant", "content": f"order {number} is shipped"}]}


def line(value: object) -> bytes:
    return json.dumps(value).encode()


SPOILED_ROWS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    lambda rng, good: good[: rng.randrange(1, len(good))],
    lambda rng, good: good.replace(b"order", b"\xff\xfe", 1),
    lambda rng, good: good.replace(b"order", b"or\0er", 1),
    lambda rng, good: good.replace(b"user", rng.choice([b"boss", b"", b"USER"]), 1),
    lambda rng, good: good.replace(b"assistant", b"user"),
    lambda rng, good: good.replace(b"messages", rng.choice([b"message", b"text", b"prompt"]), 1),
    lambda rng, good: good.replace(b'"order', b'"\\ud800', 1),
    lambda rng, good: good[:-1] + b', "score": NaN}',
    lambda rng, good: good[:-1] + b', "score": 1e999}',
    lambda rng, good: good[:-1] + b', "chosen": [1]}',
    lambda rng, good: good + good,
    lambda rng, good: b"[" * rng.randrange(2000, 90_000),
    lambda rng, good: line({"messages": rng.choice([[], 7, None, "x", [1], [{}], [{"role": "assistant", "content": 3}]])}),
    lambda rng, good: line(rng.choice([1, None, "text", [], [{}], True])),
    lambda rng, good: line({"messages": row(1)["messages"], "tools": rng.choice(["x", [1], {"a": 1}])}),
    lambda rng, good: bytes(rng.randrange(32, 127) for _ in range(rng.randrange(1, 60))),
)
"""What may become of one line of JSON."""


def table_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    cells = ('"' + json.dumps(one["messages"]).replace('"', '""') + '"' for one in rows)
    return "\n".join(["messages", *cells, ""]).encode()


SPOILED_FILES: tuple[tuple[str, Callable[[random.Random, list[dict[str, Any]]], bytes]], ...] = (
    ("jsonl", lambda rng, rows: b"\n".join(map(line, rows)).decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-16-be"]))),
    ("jsonl.gz", lambda rng, rows: (packed := gzip.compress(b"\n".join(map(line, rows))))[: rng.randrange(12, len(packed) - 1)]),
    ("json", lambda rng, rows: json.dumps(rows).encode()[:-1]),
    ("json", lambda rng, rows: json.dumps(rows).encode().replace(b"}]}, {", b"}]} {", 1)),
    ("parquet", lambda rng, rows: table_of(rows)[: -rng.randrange(1, 40)]),
    ("parquet", lambda rng, rows: b"PAR1" + rng.randbytes(200)),
    ("arrow", lambda rng, rows: b"\xff\xff\xff\xff" + rng.randbytes(60)),
    ("csv", lambda rng, rows: csv_of(rows) + b'"never closed\n'),
    ("csv", lambda rng, rows: csv_of(rows) + b"\xff,\n"),
    ("csv", lambda rng, rows: csv_of(rows) + b"a,b\n"),
    ("csv", lambda rng, rows: b"messages,messages\n" + csv_of(rows)),
)
"""What may become of a file of good rows: a suffix, and its bytes. Nothing behind the damage can be told."""


def spoil_one(rng: random.Random, folder: Path, number: int) -> tuple[Path, list[int], int | None]:
    """A file with something wrong in it; its good rows by number, and the line that is bad, None where the file is."""
    numbers = [number * ROWS + i for i in range(ROWS)]
    if rng.random() < 0.7:
        at = rng.randrange(ROWS)
        lines = [line(row(n)) for n in numbers]
        lines[at] = rng.choice(SPOILED_ROWS)(rng, lines[at])
        file = folder / f"{number:04}.jsonl"
        file.write_bytes(b"\n".join(lines) + b"\n")
        if at == 0 and (
            lines[0][:1] == b"[" or b"\0" in lines[0]
        ):  # it reads like a list, or like UTF-16: the whole file is something else
            return file, [], None
        return file, [n for i, n in enumerate(numbers) if i != at], at + 1
    suffix, spoil = rng.choice(SPOILED_FILES)
    file = folder / f"{number:04}.{suffix}"
    file.write_bytes(spoil(rng, [row(n) for n in numbers]))
    return file, numbers, None


def numbers_of(found: list[Any]) -> list[int]:
    return [int(one.messages[0].text.split()[1].rstrip("?")) for one in found if isinstance(one, Conversation)]


@pytest.mark.timeout(600)
def test_a_thousand_spoiled_files(tmp_path: Path) -> None:
    rng = random.Random(7)
    folder = tmp_path / "data"
    folder.mkdir()
    read, rejected = 0, 0
    for number in range(FILES):
        file, good, bad = spoil_one(rng, folder, number)
        found = list(found_in(str(file), "sft"))
        rejects = [one for one in found if isinstance(one, Reject)]
        assert {one.file for one in rejects} == {str(file)} and all(one.reason and one.line > 0 for one in rejects), file
        if bad is not None:
            assert numbers_of(found) == good, f"{file}: a good row was lost, or a bad one taken"
            assert [one.line for one in rejects] == [bad], file
        else:
            assert numbers_of(found) == good[: len(numbers_of(found))], file
            assert len(rejects) == 1, file
        read, rejected = read + len(numbers_of(found)), rejected + len(rejects)
    model = tmp_path / "model"
    new_model(["order 1 is shipped"], model, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=270, max_position=256))
    table = SFTConfig(steps=2, batch=8, data=str(folder), max_rejects=FILES)
    data = lay_out(table.supervised_rows, Making(model, 200, {}, 0, 1), tmp_path / "laid out")
    assert (data.facts[0].rows, data.facts[0].rejected) == (read, rejected) and rejected == FILES
    assert len((tmp_path / "laid out" / "rejects.jsonl").read_text().splitlines()) == FILES
    assert len(data.examples(1)) == 8
