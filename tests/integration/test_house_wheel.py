"""The built wheel, looked into."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_ships_burnish_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"burnish"}
    assert "burnish/envs/types.py" in names
    assert "burnish/v1/__init__.py" in names
    assert "burnish/py.typed" in names
    templates = {f"burnish/{file.relative_to(ROOT / 'core')}" for file in (ROOT / "core" / "cli" / "templates").rglob("*.jinja")}
    assert len(templates) > 10 and templates <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
