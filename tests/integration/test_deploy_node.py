"""`deploy/node.sh` over the real Ray: a head, a node that joins it, a run's client that needs the token, and the end of all of it.

It plays in namespaces of its own (processes, mounts, network), since `ray stop` ends every Ray that it sees on a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SEPARATE = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--net"]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        subprocess.run([*SEPARATE, "sh", "-c", "ip link set lo up"], capture_output=True, check=False).returncode != 0,
        reason="needs the right to make namespaces, and the command ip",
    ),
]

NODE = Path(__file__).resolve().parents[2] / "deploy" / "node.sh"
PLAY = """
set -e
ip link set lo up
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
"$NODE" head --num-cpus=1 --object-store-memory=100000000 >head.log 2>&1
"$NODE" 127.0.0.1 --num-cpus=2 --object-store-memory=100000000 >joined.log 2>&1
RAY_AUTH_MODE=token "$PYTHON" -c "$ASK" 2>client.log
HOME=$PWD/stranger RAY_AUTH_MODE=token "$PYTHON" -c "$ASK" >stranger.out 2>stranger.log && echo '"let in"' || echo '"refused"'
"$NODE" stop >stop.log 2>&1
ps -eo args | grep -E 'raylet|gcs_server|ray::' | grep -v grep | wc -l
"""
ASK = """
import json, ray
ray.init(address="127.0.0.1:6379", log_to_driver=False)
print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "nodes": len([n for n in ray.nodes() if n["Alive"]])}))
"""


def test_a_head_and_a_node_start_and_stop(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "stranger").mkdir()
    bin = Path(sys.executable).parent
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "NODE": str(NODE), "PYTHON": sys.executable, "ASK": ASK,
    }  # fmt: skip
    done = subprocess.run([*SEPARATE, "sh", "-c", PLAY], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=550, check=False)
    logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, done.stderr + logs
    seen, stranger, left = map(json.loads, done.stdout.splitlines())
    assert seen == {"cpus": 3.0, "nodes": 2}, logs
    assert (stranger, left) == ("refused", 0), logs
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert token.is_file() and token.read_text().strip()
