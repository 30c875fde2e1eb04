"""The dashboard for Grafana shows what is exported: every metric of ours, and none that nobody exports."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from burnish.rollout.observe import RolloutMetrics
from burnish.serving.audit import Metrics
from burnish.trainer.observe import SHOWN

pytestmark = pytest.mark.unit

BOARD = json.loads((Path(__file__).resolve().parents[2] / "deploy" / "grafana.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
FUNCTIONS = {"histogram_quantile", "max", "rate", "sum"}
PLACED = {"SessionName", "WorkerId"}
"""Labels that Ray gives to every metric."""

Labels = dict[str, set[str]]
"""The name of a sample, as Prometheus has it -> its labels."""


def samples(name: str, kind: str, labels: Any) -> Labels:
    """What a metric is in Prometheus."""
    if kind == "histogram":
        return {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": {*labels}, f"{name}_count": {*labels}}
    return {f"{name}_total" if kind == "counter" else name: {*labels}}


def of_ray(name: str, kind: str, labels: Any) -> Labels:
    return samples(f"ray_{name}", kind, {*labels, *PLACED})


@pytest.fixture(scope="module")
def ours() -> Labels:
    """Every sample that burnish exports, through Ray or at a service's `/metrics`."""
    found = Labels()
    for name, _ in SHOWN.values():
        found |= of_ray(name, "gauge", ())

    def noting(kind: str) -> Any:
        return lambda name, told, *more: found.update(of_ray(name, kind, more[-1]))

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("Counter", "Gauge", "Histogram"):
            patch.setattr(f"burnish.rollout.observe.{kind}", noting(kind.lower()))
        RolloutMetrics("worker-0")
    for one in Metrics()._registry._collector_to_names:
        found |= samples(one._name, one._type, one._labelnames)  # type: ignore[attr-defined]  # there is no public way to labels
    return found


@pytest.fixture(scope="module")
def vllms() -> Labels:
    """What vLLM exports through Ray, as its source has it: importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    text = (Path(spec.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py").read_text()
    made = re.findall(r'self\._(gauge|counter|histogram)_cls\(\s*name="vllm:(\w+)"', text)
    assert len(made) > 30
    found = Labels()
    for kind, name in made:
        found |= of_ray(f"vllm_{name}", kind, {"model_name", "engine", "finished_reason"})
    return found


def asked(expression: str) -> tuple[set[str], set[str]]:
    """The samples and the labels of an expression."""
    labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    labels |= set(re.findall(r"(\w+)=", expression))
    bare = re.sub(r"by \([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", expression)
    return set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - FUNCTIONS, labels


def test_every_panel_is_of_what_is_exported(ours: Labels, vllms: Labels) -> None:
    exported = ours | vllms
    for title, target in TARGETS:
        names, labels = asked(target["expr"])
        assert names, title
        for name in names:
            assert name in exported, f"{title}: nobody exports {name}"
            assert labels <= exported[name], f"{title}: {name} has no {labels - exported[name]}"
        said = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert said <= labels, f"{title}: its expression leaves no {said - labels}"


def test_all_that_is_ours_has_a_panel(ours: Labels) -> None:
    shown = {name for _, target in TARGETS for name in asked(target["expr"])[0]}
    parts = ("_sum", "_count")
    assert {name for name in ours if not name.endswith(parts)} <= shown


def test_it_asks_which_prometheus_and_which_run(ours: Labels) -> None:
    source, run = BOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    here = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == here for panel in [run, *PANELS])
    (asked_of,) = re.findall(r"label_values\((\w+), SessionName\)", run["query"]["query"])
    assert asked_of in ours
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert used == {"datasource", "session", "__rate_interval"}


def test_its_panels_have_places_and_numbers_of_their_own() -> None:
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbers) == len(set(numbers)) and all(panel["title"] for panel in BOARD["panels"])
    for one, other in combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        assert not (across and one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]), (one, other)
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))


def test_every_bracket_is_closed() -> None:
    assert list(unclosed()) == []


def unclosed() -> Iterator[str]:
    for title, target in TARGETS:
        left = re.sub(r'"[^"]*"', "", target["expr"])
        while (less := re.sub(r"\([^(){}\[\]]*\)|\{[^(){}\[\]]*\}|\[[^(){}\[\]]*\]", "", left)) != left:
            left = less
        if re.search(r"[(){}\[\]]", left):
            yield title
