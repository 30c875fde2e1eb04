"""Where an episode's time went, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.inspector.charts import span_chart
from burnish.inspector.timeline import ENGINE, ENVIRONMENT, REST, SCORING, TimeSpan, scorer_spans, timeline, totals

pytestmark = pytest.mark.unit


def stored(**more: Any) -> dict[str, Any]:
    turns = [{"generate_s": 0.5, "env_s": 0.25}, {"generate_s": 1.0, "env_s": 0.0}]
    return {"turns": turns, "metrics": {"seconds": 2.5, "judge_seconds": 0.5}, **more}


def test_the_spans_follow_each_other() -> None:
    spans = timeline(stored())
    assert spans == [
        TimeSpan(REST, "before and between the turns", 0.0, 0.25),
        TimeSpan(ENGINE, "turn 1", 0.25, 0.5),
        TimeSpan(ENVIRONMENT, "turn 1", 0.75, 0.25),
        TimeSpan(ENGINE, "turn 2", 1.0, 1.0),
        TimeSpan(SCORING, "by rewards and verifiers", 2.0, 0.5),
    ]
    assert totals(spans) == {ENGINE: 1.5, ENVIRONMENT: 0.25, REST: 0.25, SCORING: 0.5}


def test_each_scorer_that_was_timed_stands_from_where_scoring_begins() -> None:
    took = {"seconds": 2.5, "judge_seconds": 0.5, "a/judge_seconds": 0.5, "none/judge_seconds": float("nan"), "group/judge_seconds": 4.0}
    found = stored(metrics=took, parts={"group": 1.0, "a": 0.0, "b": 0.0}, labels={"b.explanation": "why"})
    assert scorer_spans(found, timeline(found)) == [TimeSpan(SCORING, "group", 2.0, 4.0), TimeSpan(SCORING, "a", 2.0, 0.5)]
    alone = stored(metrics={"a/judge_seconds": 1.0}, parts=None, labels=None)
    assert scorer_spans(alone, timeline(alone)) == [TimeSpan(SCORING, "a", 1.75, 1.0)]
    assert scorer_spans(alone, []) == [TimeSpan(SCORING, "a", 0.0, 1.0)]


@pytest.mark.parametrize(
    "metrics", [None, {}, {"seconds": float("nan")}, {"seconds": -1.0}, {"seconds": float("inf"), "judge_seconds": None}]
)
def test_what_was_not_measured_is_left_out(metrics: Any) -> None:
    assert [span.kind for span in timeline(stored(metrics=metrics))] == [ENGINE, ENVIRONMENT, ENGINE]


def test_an_episode_without_a_second_has_no_bar() -> None:
    assert timeline(stored(turns=None, metrics=None)) == [] and span_chart("x", []) == ""


def test_a_bar_says_what_each_span_is() -> None:
    drawn = span_chart("time", [(0, "engine <1>", 0.0, 1.0), (3, "scoring", 1.0, 3.0)])
    assert 'class="mark s0" x="0.00" y="2" width="150.00"' in drawn and 'class="mark s3" x="150.00" y="2" width="450.00"' in drawn
    assert "<title>engine &lt;1&gt;: 1.000 s</title>" in drawn and ">4 s</text>" in drawn
    lanes = span_chart("time", [(0, "engine", 0.0, 1.0)], [(3, "a <b>", 1.0, 1.0), (3, "c" * 99, 1.0, 3.0)])
    assert 'class="mark s3" x="150.00" y="40" width="150.00" height="8"><title>a &lt;b&gt;: 1.000 s</title>' in lanes
    assert 'x="150.00" y="64" width="450.00"' in lanes and f">{'c' * 60}</text>" in lanes and 'viewBox="0 0 600 92"' in lanes
