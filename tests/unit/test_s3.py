"""Models and rows behind s3://, from a local server that answers as S3 does (moto), through the package that a user installs (s3fs)."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_models_registry import burnish

from burnish.envs.row_files import UnreadableFile, opened
from burnish.trainer.data.forms import Conversation
from burnish.trainer.data.sources import found_in
from burnish.trainer.data.task_files import read_task_rows
from burnish.trainer.models.importing import ModelSize, import_model, new_model
from burnish.trainer.models.manifest import read_manifest

pytest.importorskip("s3fs", reason="s3fs is not beside this environment: make sources")
moto_server = pytest.importorskip("moto.server", reason="moto is not beside this environment: make sources")

pytestmark = pytest.mark.unit

TALKS = [{"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": str(i + 1)}]} for i in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in TALKS).encode()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a bucket `lab`, as whoever fills it has one; the environment says where S3 is and who asks, as it does for every user."""
    import boto3
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="lab")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def put(s3: Any, name: str, data: bytes) -> str:
    s3.put_object(Bucket="lab", Key=name, Body=data)
    return f"s3://lab/{name}"


def test_a_model_is_imported_from_a_bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=64)
    made = new_model(["one two three"], tmp_path / "tiny", size)
    for file in (tmp_path / "tiny").iterdir():
        put(s3, f"models/tiny/{file.name}", file.read_bytes())
    put(s3, "models/tiny/train.py", b"raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert "sha256:" in burnish("models", "import", "s3://lab/models/tiny", "--name", "from-s3")
    here = tmp_path / "models" / "from-s3"
    assert (read_manifest(here).digest, read_manifest(here).source) == (made.digest, "s3://lab/models/tiny")
    assert not (here / "train.py").exists()


def test_a_model_that_is_not_in_the_bucket_is_refused_in_a_line(s3: Any, tmp_path: Path) -> None:
    for url, what in (("s3://lab/models/none", "cannot be read|holds no file of a model"), ("s3://none/model", "cannot be read")):
        with pytest.raises(ValueError, match=what) as refusal:
            import_model(url, tmp_path / "out")
        assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["", ".gz", ".parquet"])
def test_rows_are_read_from_a_bucket(s3: Any, packed: str) -> None:
    if packed == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(TALKS), sink, row_group_size=50)
        url = put(s3, "talks.parquet", sink.getvalue())
    else:
        url = put(s3, f"talks.jsonl{packed}", gzip.compress(LINES) if packed else LINES)
    found = list(found_in(url, "sft"))
    assert [str(one) for one in found if not isinstance(one, Conversation)][:2] == [] and len(found) == 300
    assert [one.messages[1].text for one in found if isinstance(one, Conversation)] == [str(i + 1) for i in range(300)]


def test_tasks_and_the_commands_read_from_a_bucket(s3: Any) -> None:
    url = put(s3, "tasks.jsonl", b'{"messages": [{"role": "user", "content": "2 + 2?"}], "reference_answer": "4"}\n')
    assert [row.data["reference_answer"] for row in read_task_rows(url)] == ["4"]
    assert "300" in burnish("data", "check", put(s3, "talks.jsonl", LINES))


def test_what_cannot_be_read_of_a_bucket_says_so_in_a_line(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"s3://lab/none.jsonl: there is no such file"):
        list(found_in("s3://lab/none.jsonl", "sft"))
    with pytest.raises(ValueError, match=r"s3://none/talks.jsonl: (there is no such file|cannot be read)"):
        list(found_in("s3://none/talks.jsonl", "sft"))
    cut = put(s3, "cut.jsonl.gz", gzip.compress(LINES)[:-20])
    with pytest.raises(UnreadableFile, match=r"cut.jsonl.gz: the compressed file is damaged or cut short"), opened(cut) as stream:
        stream.read()


def test_a_bucket_that_asks_who_one_is_says_so_in_a_line(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without credentials, and without the machine that lends some in a cloud."""
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in (("AWS_EC2_METADATA_DISABLED", "true"), ("HOME", str(tmp_path)), ("AWS_CONFIG_FILE", str(tmp_path / "none"))):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    url = "s3://lab/talks.jsonl"
    try:
        with pytest.raises(ValueError, match=rf"{url}: cannot be read: .*redentials"), opened(url):
            pass
        with pytest.raises(ValueError, match=r"s3://lab/models/tiny cannot be read: .*redentials"):
            import_model("s3://lab/models/tiny", tmp_path / "out")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
