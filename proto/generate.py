"""Generate the Python stubs of `proto/burnish/v1` with their type information: `python proto/generate.py [OUT]`.

OUT defaults to `proto/gen`, whose files are committed; a test regenerates them elsewhere and compares. Needs grpcio-tools and
mypy-protobuf. The stubs import each other as `burnish.v1.…`, which resolves once burnish is installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

PROTO = Path(__file__).resolve().parent
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(out: Path) -> None:
    """Write the stubs under `out/burnish/v1`. Raises RuntimeError with protoc's own message when a schema is wrong."""
    out.mkdir(parents=True, exist_ok=True)
    schemas = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "burnish").rglob("*.proto"))
    bin_folder = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin={plugin}={bin_folder / plugin}" for plugin in PLUGINS),
        f"--python_out={out}", f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}",
        *schemas,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=PROTO, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"protoc failed:\n{done.stderr.strip()}")
    for stub in out.rglob("*_pb2_grpc.py"):
        if "Servicer" not in stub.read_text():  # a schema without services
            stub.unlink()
            stub.with_suffix(".pyi").unlink()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO / "gen")
