"""All static checks, one after the other: `make lint`.

The room folders at the root import under other names (envs/ is `burnish.envs`), which a type checker and import-linter cannot see from an
editable install. So each run first lays out `burnish/` as links to the rooms, from the mapping in pyproject.toml, and checks that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = Path(sys.prefix) / "lint"
SCRIPTS = ["tests", "examples", "benchmarks", "constraints", "proto/generate.py", "proto/check_breaking.py"]


def package_folders() -> dict[str, Path]:
    """Import name -> folder, outermost packages first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mapping = project["tool"]["setuptools"]["package-dir"]
    return {name: ROOT / folder for name, folder in sorted(mapping.items())}


def lay_out(tree: Path) -> None:
    """Fill `tree` with one real folder, `burnish`, of links to core's files and to the other rooms."""
    shutil.rmtree(tree, ignore_errors=True)
    folders = package_folders()
    top = tree / "burnish"
    top.mkdir(parents=True)
    for entry in folders["burnish"].iterdir():
        if entry.name != "__pycache__":
            (top / entry.name).symlink_to(entry)
    for name, folder in folders.items():
        link = tree.joinpath(*name.split("."))
        if not link.exists():  # the root itself, and packages inside a folder that is linked already
            link.symlink_to(folder)


def real_paths(text: str) -> str:
    """Put the rooms' own folders where a checker printed paths below the tree."""
    shown = os.path.relpath(TREE, ROOT)
    folders = sorted(package_folders().items(), reverse=True)  # burnish.envs before burnish
    for name, folder in folders:
        text = text.replace(f"{shown}/{name.replace('.', '/')}/", f"{folder.relative_to(ROOT)}/")
    return text


def check(name: str, command: list[str]) -> bool:
    """Run one checker, show what it found, and say whether it was content."""
    environment = {**os.environ, "PYTHONPATH": str(TREE), "MYPYPATH": f"{TREE}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    good = result.returncode == 0
    print(f"{name}: {'ok' if good else 'FAILED'}", flush=True)
    if not good:
        print(real_paths(result.stdout))
    return good


def main() -> int:
    lay_out(TREE)
    tools = Path(sys.executable).parent
    shown = os.path.relpath(TREE / "burnish", ROOT)
    sources = [shown, *(name for name in SCRIPTS if (ROOT / name).is_file() or any((ROOT / name).rglob("*.py")))]
    results = [
        check("ruff check", [str(tools / "ruff"), "check", "."]),
        check("ruff format", [str(tools / "ruff"), "format", "--diff", "--quiet", "."]),
        check("import-linter", [str(tools / "lint-imports"), "--no-cache", "--no-logo"]),
        check("mypy --strict", [str(tools / "mypy"), *sources]),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
