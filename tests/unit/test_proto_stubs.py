"""The committed stubs are what the schemas say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

PROTO = Path(__file__).resolve().parents[2] / "proto"


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("burnish_proto_generate", PROTO / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)

    def files(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in (folder / "burnish" / "v1").glob("*_pb2*")}

    fresh, committed = files(tmp_path), files(PROTO / "gen")
    assert fresh.keys() == committed.keys()
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, f"{stale} differ from the schemas; run python proto/generate.py"


def test_proto_is_no_package() -> None:
    assert not list(PROTO.glob("__init__.py")), "proto/ must not shadow proto-plus, whose package is called proto"
