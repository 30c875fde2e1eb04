"""The page "run tools": what it says to paste works, and its recipe is one."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.contract import make_env
from burnish.envs.registry import load_plugin
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext
from burnish.hosting.process import ServiceProcess
from burnish.recipe.load import config_from_data

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "run-tools.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_tools_of_the_page_answer_the_environment_of_the_page(tmp_path: Path) -> None:
    stock, orders, shelf = blocks("python")
    for name, text in (("stock.py", stock), ("orders.py", orders), ("shelf.py", shelf)):
        (tmp_path / name).write_text(text)
    with ServiceProcess("tools", str(tmp_path / "stock.py"), tmp_path / "stock.log") as service:
        load_plugin(str(tmp_path / "orders.py"))
        env = make_env("shop/Orders-v0", tools=service.address)
        env.reset(seed=1)
        assert env.step('count(item="bolts")')[0][0].text == '{"bolts": 7}'
        assert env.step('count(item="screws")')[0][0].text == "Error: there is no 'screws'; there are bolts, nuts"
        env.close()
    with ServiceProcess("tools", f"{tmp_path / 'shelf.py'}:Shelf", tmp_path / "shelf.log") as service:
        session = RemoteToolSet(service.address).open(ToolContext("e/0", 1, {"shelf": {"bolts": 7}}))
        assert [session.call("take", {"item": "bolts", "count": 2}) for _ in range(2)] == ["5 left", "3 left"]
        session.close()


@pytest.mark.parametrize("replies", [True, False])
def test_the_check_of_the_page_finds_no_fault_in_its_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replies: bool) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shelf.py").write_text(blocks("python")[2])
    (line,) = re.findall(r"`burnish (check [^`]*)`", PAGE)
    given = shlex.split(line if replies else line.partition(" --reply")[0])
    said = CliRunner().invoke(app, given)
    assert (said.exit_code, "FAIL" in said.output) == (0, False), said.output
    assert ("passed" in said.output) is replies  # without a call that means something, it asks for one


def test_the_recipe_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stock.py").write_text(blocks("python")[0])
    (recipe,) = blocks("toml")
    config = config_from_data({"name": "shop", "model": "m", **tomllib.loads(recipe)}, "recipe.toml")
    assert config.services["stock"].kind == "tools"
