"""A local Ray is started again when the machine was too busy for Ray's own limit, and for no other reason."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.rpc.local_ray import ATTEMPTS, start_local_ray

pytestmark = pytest.mark.unit

LATE = Exception("The current node timed out during startup. This could happen because some of the raylet failed to startup.")


@pytest.mark.parametrize(
    ("answers", "calls", "raises"),
    [
        (["started"], 1, None),
        ([LATE, LATE, "started"], 3, None),
        ([LATE] * 9, ATTEMPTS, "timed out"),
        ([ValueError("no such option"), "started"], 1, "no such option"),
    ],
)
def test_only_a_late_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, answers: list[Any], calls: int, raises: str | None) -> None:
    given: list[dict[str, Any]] = []
    ended: list[None] = []

    def init(**options: Any) -> Any:
        answer = answers[len(given)]
        given.append(options)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: ended.append(None)))
    monkeypatch.setattr("burnish.rpc.local_ray.require", lambda *args: None)
    if raises is None:
        assert start_local_ray(num_cpus=2) == "started"
    else:
        with pytest.raises(Exception, match=raises):
            start_local_ray(num_cpus=2)
    assert given == [{"address": "local", "num_cpus": 2}] * calls
    assert len(ended) == calls - 1
