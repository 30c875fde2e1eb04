"""A run over two nodes of Ray that share no folder: the second one, in a mount namespace of its own, finds the run's folder empty."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from tests.integration.fault_nodes import SLOT

from burnish.inspector.runs import read_run_transcripts

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
        reason="needs the right to make a mount namespace",
    ),
]

WAIT_S = 120.0
STORE = 128 << 20
REWARD = '''
from pathlib import Path

from burnish import RewardInput, reward
from helper import doubled


@reward("apart/listed-v1")
def listed(episode: RewardInput, *, words: str) -> float:
    """Twice the bonus that a list has, which lies beside the recipe."""
    return doubled(float(Path(words).read_text()))
'''
VERDICT = """
from burnish import RewardInput, verifier


def doubled(value: float) -> float:
    return 2 * value


@verifier("apart/verdict-v1")
def verdict(episode: RewardInput) -> float:
    return 1.0
"""
RECIPE = f"""
name = "apart"
model = "models/tiny"
environment = "burnish/Arithmetic-v0"
success = "env"
plugins = ["mine.py"]

[[rewards]]
use = "apart/listed-v1"
name = "listed"
args = {{ words = "lists/bonus.txt" }}

[rft]
steps = 1
groups_per_step = 2
group_size = 2
equal_groups = "keep"

[rollout]
max_tokens_per_turn = 4

[engine]
max_context = 128
kv_cache_mb = 16
threads = 1

[learner]
threads = 1

[evaluation]
before = false
after = false

[resources]
shared_folder = false
send = ["lists", "helper.py"]
engine_resources = {{ {SLOT} = 1 }}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """All that a run needs, in one folder."""
    here = tmp_path / "here"
    shutil.copytree(tiny_model, here / "models" / "tiny")
    (here / "lists").mkdir()
    (here / "lists" / "bonus.txt").write_text("0.25")
    (here / "helper.py").write_text("def doubled(value: float) -> float:\n    return 2 * value\n")
    (here / "mine.py").write_text(REWARD)
    (here / "recipe.toml").write_text(RECIPE)
    return here


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """A node with room for the learner, and one for an engine, which has nothing in the folder."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": STORE, "include_dashboard": False})
    joins = [
        sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1", "--block",
        f'--resources={{"{SLOT}": 1}}', f"--object-store-memory={STORE}", "--disable-usage-stats",
    ]  # fmt: skip
    another = folder.parent / "boot_id"  # by which a process knows its machine
    another.write_text("00000000-0000-4000-8000-000000000001\n")
    mounts = f'mount --bind "{another}" /proc/sys/kernel/random/boot_id && mount -t tmpfs none "{folder}"'
    hidden = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *joins]
    log = folder.parent / "node.log"
    with log.open("wb") as out:
        node = subprocess.Popen(hidden, stdout=out, stderr=out, cwd="/", start_new_session=True)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        deadline = time.monotonic() + WAIT_S
        while SLOT not in ray.cluster_resources():
            assert node.poll() is None and time.monotonic() < deadline, f"the second node did not join: {log.read_text()[-2000:]}"
            time.sleep(0.5)
        yield cluster.address
    finally:
        ray.shutdown()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, 15)
        node.wait(WAIT_S)
        cluster.shutdown()


def started(folder: Path, address: str, recipe: str = "recipe.toml") -> subprocess.CompletedProcess[str]:
    options = ["--run-dir", "run", "--set", f"resources.ray_address={address}"]
    command = [sys.executable, "-m", "burnish.cli.main", "run", recipe, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


def test_a_service_on_the_loopback_of_the_run_is_refused_where_engines_are_elsewhere(address: str, folder: Path) -> None:
    service = '\n[services.judge]\nverifier = "helper.py:verdict"\n\n[[rewards]]\nname = "judge"\nverifier = "service:judge"\n'
    (folder / "helper.py").write_text(VERDICT)
    (folder / "with_service.toml").write_text(RECIPE + service)
    out = started(folder, address, "with_service.toml")
    assert out.returncode == 2, out.stdout[-3000:] + out.stderr[-3000:]
    said = "services.judge: the run starts it on the loopback of this node, and an engine may be on node"
    assert said in " ".join(out.stderr.split()), out.stderr
    assert "keep engines on this node" not in out.stderr, "it has no slot for one"


def test_engines_elsewhere_get_the_model_the_plugins_and_what_they_read(address: str, folder: Path) -> None:
    there = ray.remote(os.path.exists).options(resources={SLOT: 0.01}, num_cpus=0)
    assert ray.get([there.remote(str(folder)), there.remote(str(folder / "models"))], timeout=WAIT_S) == [True, False]
    out = started(folder, address)
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    rewards = [one.reward for one in read_run_transcripts(folder / "run")]
    assert [reward.total for reward in rewards if reward is not None] == [0.5] * 4, "twice what the list says"
