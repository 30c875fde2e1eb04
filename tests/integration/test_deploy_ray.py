"""The files of deploy/ as Ray takes them: the cluster launcher its machines, the command line the options of a node."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config
from ray.scripts.scripts import start

pytestmark = pytest.mark.integration

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_rays_launcher_takes_the_machines() -> None:
    machines = yaml.safe_load((DEPLOY / "machines.yaml").read_text())
    validate_config(fillout_defaults(machines))
    assert machines["min_workers"] == machines["max_workers"] == len(machines["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["machines.yaml", "node.sh"])
def test_ray_has_the_options_of_a_node(name: str) -> None:
    found = re.findall(r"ray start ([^;\n]*)", (DEPLOY / name).read_text())
    assert len(found) == 2, "one for the head, one for the others"
    for options in found:
        given = options.replace(' "${@:2}"', "").replace("$PORT", "6379").replace("$1", "10.0.0.7").replace("$RAY_HEAD_IP", "10.0.0.7")
        start.make_context("start", shlex.split(given))  # raises on an option that it has not
