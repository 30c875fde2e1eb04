"""The files of deploy/: well-formed, whole, and in the words of burnish. What was not run stands in docs/cluster.md."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from burnish.cli.main import app
from burnish.recipe.load import load_config

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def commands(text: str) -> list[list[str]]:
    """Every `burnish …` of a text, whatever it is quoted in, its continued comment lines joined."""
    joined = re.sub(r"\n(?:#| ) +(?=--)", " ", text)
    return [shlex.split(found) for found in re.findall(r"burnish (run [^\"\n`]*)", joined)]


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def test_docs_the_page_lists_every_file() -> None:
    assert set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)) == {file.name for file in DEPLOY.iterdir()}


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml", "machines.yaml"])
def test_their_commands_are_burnish_and_their_recipes_are_read(name: str) -> None:
    found = commands((DEPLOY / name).read_text())
    assert found, "each says how a run begins"
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    for arguments in found:
        context = root.make_context("burnish", list(arguments))
        _, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        given = command.make_context("run", list(rest), parent=context).params  # raises on an option that it has not
        recipe = ROOT / given["recipe"]
        assert recipe.is_file(), "the path on the volume is one of this repository"
        config = load_config(recipe, given["set_"] or (), (), given["platform"])
        assert config.resources.ray_address == "auto", "a run on a cluster joins it"
    if name != "machines.yaml":
        assert all("--platform" in arguments for arguments in found), "the head of a cluster may have no GPU"


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("raycluster.yaml", "RayCluster")])
def test_a_kuberay_file_is_whole(name: str, kind: str) -> None:
    said = read(name)
    assert (said["apiVersion"], said["kind"]) == ("ray.io/v1", kind)
    cluster = cluster_of(name)
    (pinned,) = re.findall(r'"ray\[default,rllib\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert cluster["rayVersion"] == pinned and f"FROM rayproject/ray:{pinned}-py311-gpu" in (DEPLOY / "Dockerfile").read_text()
    images = set()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts what it may use"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"/shared", "/dev/shm"}, "one folder on every node, and room for the object store"
    assert len(images) == 1
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_job_has_an_engine_on_every_node_of_its_own() -> None:
    (arguments,) = commands(read("rayjob.yaml")["spec"]["entrypoint"])
    engines = next(int(one.partition("=")[2]) for one in arguments if one.startswith("resources.env_runners="))
    cluster = cluster_of("rayjob.yaml")
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in cluster["workerGroupSpecs"]]
    gpus = sum(group["replicas"] * limit["nvidia.com/gpu"] for group, limit in zip(cluster["workerGroupSpecs"], limits, strict=True))
    assert engines == gpus, "the learner has the head's"


def test_the_image_is_made_of_what_is_here() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (extra,) = re.findall(r'pip install --no-cache-dir "\.\[(\w+)\]"', text)
    assert re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert "docker build -f deploy/Dockerfile" in text


def test_the_image_holds_the_packages_and_no_runs_models_or_keys() -> None:
    said = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    mapped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    folders = {"proto/gen" if folder.startswith("proto/gen") else folder.partition("/")[0] for folder in mapped}
    assert said[0] == "*", "nothing but what is listed"
    assert {line[1:] for line in said if line.startswith("!")} == folders | {"pyproject.toml", "README.md", "LICENSE"}
    assert said[-2:] == ["**/__pycache__", "**/.*"], "nor what lies hidden in the folders"
    (place,) = re.findall(r"^WORKDIR (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert not place.startswith("/"), "the home is that of the image"


@pytest.mark.parametrize(("name", "host"), [("rayjob.yaml", "0.0.0.0"), ("raycluster.yaml", "127.0.0.1")])
def test_a_cluster_asks_for_a_token_and_listens_no_further_than_it_must(name: str, host: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == host


def test_a_cluster_that_stays_shows_the_rollouts_of_its_volume() -> None:
    head = cluster_of("raycluster.yaml")["headGroupSpec"]
    (container,) = head["template"]["spec"]["containers"]
    shell, option, script = container["lifecycle"]["postStart"]["exec"]["command"]
    assert (shell, option) == ("bash", "-c") and subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    assert script.endswith(" &") and ">/tmp/" in script and "</dev/null" in script, "the hook ends at once"
    (arguments,) = re.findall(r"burnish (inspect [^<>]*)", script)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    given = command.commands["inspect"].make_context("inspect", shlex.split(arguments)[1:]).params
    assert given["behind_dashboard"] and given["runs"] == Path("/shared/runs")
    assert head["rayStartParams"]["proxy-server-url"] == f"http://127.0.0.1:{given['port'] or 8266}"


def test_machines_without_kubernetes_ask_for_a_token_too() -> None:
    machines = read("machines.yaml")
    for role in ("head", "worker"):
        (start,) = [command for command in machines[f"{role}_start_ray_commands"] if "ray start" in command]
        assert "RAY_AUTH_MODE=token ray start" in start
    assert machines["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_a_node_is_started_or_ended_with_ray(tmp_path: Path) -> None:
    """Over a `ray` that says what it was asked for."""
    said = tmp_path / "ray"
    said.write_text('#!/bin/sh\necho "ray $* $RAY_AUTH_MODE"\n')
    said.chmod(0o755)

    def node(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BURNISH_RAY_PORT": "6400"}
        return subprocess.run([str(DEPLOY / "node.sh"), *arguments], env=env, capture_output=True, text=True, timeout=30, check=False)

    head, worker, stop, nothing = node("head").stdout, node("10.0.0.7").stdout, node("stop").stdout, node()
    assert "--head --port=6400" in head and "--address=10.0.0.7:6400" in worker and stop == "ray stop token\n"
    assert "--proxy-server-url=http://127.0.0.1:8266 token" in node("head", "--proxy-server-url=http://127.0.0.1:8266").stdout
    assert head.endswith(" token\n") and worker.endswith(" token\n"), "Ray asks for its token"
    assert nothing.returncode == 2 and "usage" in nothing.stderr and node("--help").returncode == 2
