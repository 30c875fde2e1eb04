"""What holds for the graph of imports: no cycle among files, and a recipe that is read in few places."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

GRAPH = """
import json, grimp
graph = grimp.build_graph("burnish", cache_dir=None)
print(json.dumps({module: sorted(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}))
"""

READ_THE_RECIPE = {"checks", "config", "load", "placement", "recorded", "phase_run", "resolve"}
"""Files of core/recipe/ that know `RunConfig`; everything else reads a `ResolvedRun`, or a piece of one."""


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Module -> the modules of burnish that it imports, anywhere in it."""
    tree = tmp_path_factory.mktemp("tree")
    spec = importlib.util.spec_from_file_location("lint", ROOT / "tests" / "lint.py")
    assert spec is not None and spec.loader is not None
    lint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lint)
    lint.lay_out(tree)
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", GRAPH], cwd=tree, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def cycles(graph: dict[str, list[str]]) -> dict[str, list[str]]:
    """What is left of a graph, with what each imports of it, when whatever imports nothing that is left, or is imported by nothing that is
    left, is taken away again and again: the cycles, and the ways between them.

    Example: `cycles({"a": ["b"], "b": ["a", "c"], "c": []})` is `{"a": ["b"], "b": ["a"]}`.
    """
    left = {module: set(imported) - {module} for module, imported in graph.items()}
    while True:
        used = set().union(*left.values())
        free = [module for module, imported in left.items() if module not in used or not imported & left.keys()]
        if not free:
            return {module: sorted(imported & left.keys()) for module, imported in left.items()}
        for module in free:
            del left[module]


def test_a_cycle_is_found() -> None:
    assert cycles({"a": ["b"], "b": ["a", "c"], "c": [], "d": ["a"]}) == {"a": ["b"], "b": ["a"]}


def test_no_files_import_each_other_in_a_circle(imports: dict[str, list[str]]) -> None:
    assert len(imports) > 150, "the graph must hold the whole house"
    assert imports["burnish.recipe.load"], "and the imports of its files"
    assert cycles(imports) == {}


def test_the_recipe_is_read_in_few_files_and_never_after_it_is_resolved() -> None:
    readers = {
        str(file.relative_to(ROOT))
        for room in ("core", "envs", "rewards", "rollout", "trainer", "serving", "inspector", "rpc")
        for file in (ROOT / room).rglob("*.py")
        if "RunConfig" in names_in(file)
    }
    public = {"core/__init__.py", "core/recipe/reference.py"}  # passes the name on; describes its keys and reads none
    public |= {"core/run/tuning.py"}  # Ray Tune has a class of that name
    assert readers - public == {f"core/recipe/{name}.py" for name in READ_THE_RECIPE}


def names_in(file: Path) -> set[str]:
    """Every name that is used, imported or defined in a file, or that its annotations hold."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.ClassDef(name=name) | ast.Attribute(attr=name):
                names.add(name)
    return names
