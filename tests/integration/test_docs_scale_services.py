"""The page on services on a cluster: what it deploys serves, under the name it says, and ends with `burnish undeploy`."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.contract import make_env
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext
from burnish.rpc.local_ray import start_local_ray

pytestmark = pytest.mark.integration

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "scale-services.md").read_text()
WAIT_S = 150.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    import ray

    context = start_local_ray(
        num_cpus=4, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False, logging_level="ERROR"
    )
    yield str(context.address_info["gcs_address"])
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the page deploys, as the pages that it continues have them."""
    for page, mark, name in (("run-tools.md", "def count", "stock.py"), ("bring-an-environment.md", "my-team/Sums-v0", "sums.py")):
        found = re.findall(r"^(?:```python\n|cat > \S+ <<'END'\n)(.*?)^(?:```|END)$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
        (tmp_path / name).write_text(next(text for text in found if mark in text))
    return tmp_path


def command(start: str, cluster: str) -> list[str]:
    """The line of the page that begins so, at this cluster."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"burnish {start}"))
    return [sys.executable, "-m", "burnish.cli.main", *shlex.split(line)[1:], "--cpus", "0.5", "--ray-address", cluster]


@contextmanager
def deployed(start: str, cluster: str, folder: Path) -> Iterator[dict[str, Any]]:
    with subprocess.Popen(command(start, cluster), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next(json.loads(line) for line in process.stdout if line.startswith("{"))
            yield ready
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_S)


def test_tools_and_an_environment_serve_until_they_are_undeployed(cluster: str, folder: Path) -> None:
    with deployed("deploy-tools", cluster, folder) as ready:
        assert (ready["address"], len(ready["replicas"])) == ("ray:stock", 2)
        session = RemoteToolSet("ray:stock", deadline_s=WAIT_S).open(ToolContext("e/0", 1, {"shelf": {"bolts": 7}}))
        assert session.call("count", {"item": "bolts"}) == '{"bolts": 7}'
        session.close()
    with deployed("deploy-env", cluster, folder) as ready:
        env = make_env("burnish/Remote-v0", address=ready["address"])
        assert env.reset(seed=7)[0][0].text.startswith("What is ")
        env.close()
        undeploy = [sys.executable, "-m", "burnish.cli.main", "undeploy", "sums", "--ray-address", cluster]
        done = subprocess.run(undeploy, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.stdout == "sums has ended\n", done.stderr
