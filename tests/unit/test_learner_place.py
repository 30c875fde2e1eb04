"""Where the cluster puts learners: on one node where one holds them all. Ray is scripted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from burnish.trainer import rllib
from burnish.trainer.learner import group as module

pytestmark = pytest.mark.unit


@dataclass
class Cluster:
    """Nodes by what each has in all, and which strategies find room; what was asked for and given back, in order."""

    nodes: list[Mapping[str, float]]
    has_room: tuple[str, ...]
    asked: list[tuple[str, list[dict[str, float]]]] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    selected: list[Any] = field(default_factory=list)

    def placement_group(self, bundles: list[dict[str, float]], strategy: str, name: str, bundle_label_selector: Any) -> Any:
        self.asked.append((strategy, bundles))
        self.selected.append(bundle_label_selector)
        return type("Group", (), {"ready": lambda group: strategy, "strategy": strategy})()

    def get(self, strategy: str, timeout: float) -> None:
        self.waited.append(timeout)
        if strategy not in self.has_room:
            raise ray.exceptions.GetTimeoutError


def placed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, place_s: float = 600.0, learners: int = 2, node: str = "") -> str:
    monkeypatch.setattr(module, "placement_group", cluster.placement_group)
    monkeypatch.setattr(module, "remove_placement_group", lambda group: cluster.given_back.append(group.strategy))
    monkeypatch.setattr(module, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(ray, "get", cluster.get)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": f"n{i}", "Resources": one} for i, one in enumerate(cluster.nodes)])
    return str(module.learner_room(learners, 1.0, place_s, node).strategy)  # type: ignore[union-attr]


WHOLE, HALF = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}


def test_learners_share_a_node_that_holds_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([HALF, WHOLE, HALF], ("PACK", "STRICT_PACK"))
    assert placed(cluster, monkeypatch) == "STRICT_PACK"
    assert cluster.asked == [("STRICT_PACK", [{"CPU": 1.0, "GPU": 1.0}] * 2)] and cluster.given_back == []


def test_learners_are_apart_where_no_node_holds_them_all_or_it_stays_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Cluster([HALF, HALF], ("PACK",))
    assert placed(small, monkeypatch) == "PACK" and [strategy for strategy, _ in small.asked] == ["PACK"]
    busy = Cluster([WHOLE, HALF], ("PACK",))
    assert placed(busy, monkeypatch) == "PACK" and busy.given_back == ["STRICT_PACK"]
    assert busy.waited[0] == module.TOGETHER_S and 500 < busy.waited[1] <= 600


def test_no_room_at_all_is_said_and_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Cluster([WHOLE], ())
    with pytest.raises(TimeoutError, match=r"no room for 2 learners of 1 CPU, 1 GPU each within limits\.place_s = 8 s"):
        placed(full, monkeypatch, place_s=8.0)
    assert full.given_back == ["STRICT_PACK", "PACK"] and full.waited[0] == 4.0


def test_learners_are_on_the_node_that_alone_has_the_files_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([HALF, WHOLE], ("STRICT_PACK",))
    assert placed(cluster, monkeypatch, node="n1") == "STRICT_PACK"
    assert cluster.selected == [[{"ray.io/node-id": "n1"}] * 2]
    with pytest.raises(ValueError, match=r"resources\.shared_folder: where it is false, learners are on the node"):
        placed(cluster, monkeypatch, node="n0")
    assert len(cluster.asked) == 1, "the node that is too small is not asked"
    with pytest.raises(TimeoutError, match="no room for 2 learners"):
        placed(Cluster([WHOLE], ("PACK",)), monkeypatch, place_s=8.0, node="n0")


class Config:
    """As far as an algorithm's config says where learners are."""

    num_learners, num_gpus_per_learner, learner_limits = 2, 1.0, module.LearnerLimits(place_s=7.0)


@pytest.mark.parametrize("started", [True, False])
def test_learners_have_their_room_before_engines_start_and_give_it_back_when_none_come(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, given_back = list[Any](), list[Any]()

    def room(*given: Any) -> str:
        asked.append(given)
        return "room"

    monkeypatch.setattr(rllib, "learner_room", room)
    monkeypatch.setattr(rllib, "remove_placement_group", given_back.append)
    with pytest.raises(OSError, match="an engine"), rllib._room_kept(Config()):
        assert asked == [(2, 1.0, 7.0, "")] and rllib._ROOM.get() == "room"
        if started:
            rllib._ROOM.set(None)  # as who starts the learners does
        raise OSError("an engine")
    assert given_back == ([] if started else ["room"]) and rllib._ROOM.get() is None


def test_one_learner_does_not_wait_for_room_without_end_either(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Cluster([WHOLE], ())
    with pytest.raises(TimeoutError, match=r"no room for a learner of 1 CPU, 1 GPU within limits\.place_s = 8 s; wait"):
        placed(full, monkeypatch, place_s=8.0, learners=1)
    assert full.asked[-1] == ("PACK", [{"CPU": 1.0, "GPU": 1.0}])
