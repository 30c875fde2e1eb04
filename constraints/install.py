"""Make the virtual environment of this checkout: `python3.11 constraints/install.py {cpu,gpu} FOLDER`. `make` calls it.

Everything comes from the constraints file of the platform, each package in exactly that version and nothing beside them, so pip has
nothing to resolve. Stopping it half-way is harmless: the next call goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = "pip==26.3"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # asked only where pip does not find the CPU build of torch by itself
DISK_GB = {"cpu": 8, "gpu": 20}
MEMORY_GB = 8
ANYWAY = "BURNISH_INSTALL_ANYWAY"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", choices=sorted(DISK_GB))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()

    reasons = shortcomings(args.platform, args.folder)
    if reasons and not os.environ.get(ANYWAY):
        print("burnish cannot be installed here:", *(f"  - {reason}" for reason in reasons), sep="\n", file=sys.stderr)
        print(f"To try it all the same: {ANYWAY}=1 make install", file=sys.stderr)
        return 1
    try:
        install(args.platform, args.folder)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"\nThe install stopped at: {command}\nThe reason is above; run the same command again to go on.", file=sys.stderr)
        return 1
    return 0


def shortcomings(target: str, folder: Path) -> list[str]:
    """What this machine lacks, one sentence each."""
    reasons = []
    if sys.version_info[:2] != (3, 11):
        this = f"{platform.python_version()} ({sys.executable})"
        reasons.append(f"Python 3.11 is needed and this is {this}; name another: make PYTHON=/path/to/python3.11")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        reasons.append(f"Linux on x86-64 is needed and this is {platform.system()} on {platform.machine()}")
    if not folder.exists():
        free = shutil.disk_usage(folder.resolve().parent).free / 1e9
        if free < DISK_GB[target]:
            reasons.append(f"about {DISK_GB[target]} GB of free disk are needed and {folder.resolve().parent} has {free:.1f} GB")
    memory = memory_bytes() / 1e9
    if memory < 0.94 * MEMORY_GB:  # firmware and graphics take their share of what is sold as 8 GB
        reasons.append(f"about {MEMORY_GB} GB of memory are needed and there are {memory:.1f} GB")
    return reasons


def memory_bytes() -> int:
    """The machine's memory, or the container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = limit.read_text().strip() if limit.is_file() else ""
        if text.isdigit():
            total = min(total, int(text))
    return total


def install(target: str, folder: Path) -> None:
    """Create `folder` where it is missing and bring every package to its pinned version."""
    constraints = ROOT / "constraints" / f"{target}.txt"
    python = folder / "bin" / "python"
    usable = "import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))"
    if not python.exists() or subprocess.run([python, "-c", usable], capture_output=True, check=False).returncode != 0:
        say(f"making {folder} with Python {platform.python_version()}")
        run([sys.executable, "-m", "venv", "--clear", folder])  # --clear: replace what an interrupted attempt left
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run([*pip, "install", "--quiet", PIP])

    if target == "cpu":
        torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
        say(f"{torch} (about 200 MB)")
        if subprocess.run([*pip, "install", "--no-deps", torch], check=False).returncode != 0:
            say(f"pip does not find {torch} by itself; asking {CPU_TORCH_INDEX}")
            run([*pip, "install", "--no-deps", "--index-url", CPU_TORCH_INDEX, torch])
    say(f"the rest of {constraints.relative_to(ROOT)}")
    run([*pip, "install", "--no-deps", "--requirement", constraints])
    run([*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT])
    run([python, "-c", "import burnish, torch, vllm"], quiet=True)
    say(f"done: {folder}")


def run(command: list[str | Path], quiet: bool = False) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL if quiet else None, cwd=ROOT)


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
