"""What each scorer said of an episode, how long it took and why: kept with it, shown inert, and seen by no comparison and no reward."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from starlette.testclient import TestClient
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import Failure
from burnish.envs.types import Message, Task
from burnish.inspector.pages.app import pages
from burnish.inspector.regrade import reward_input
from burnish.inspector.stored import Which, chosen
from burnish.inspector.terminal import Selection, print_rollouts
from burnish.inspector.verdicts import ScorerVerdict, verdicts
from burnish.rewards.rubric import Rubric, Scored, named_labels
from burnish.rewards.types import MAX_EXPLANATION, RewardInput, Score

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) \x1b[31mred \u202egnp \ud83d </td><img src=x onerror=alert(2)> \"'&"
SHOWN = "<script>alert(1)</script> [x](javascript:alert(1)) \\x1b[31mred \\u202egnp \\ud83d </td><img src=x onerror=alert(2)> \"'&"
SAID = RewardInput("t/0", Task("t", 1), (Message("user", "?"), Message("assistant", "7")), 0.5)


class Slow:
    """A scorer that takes `wait_s`."""

    name = "slow"

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    async def score(self, episode: RewardInput) -> Score:
        await asyncio.sleep(self._wait_s)
        return Score(1.0, labels={"predicted": "7"}, explanation="took its time")


class Ranks:
    """A group scorer that takes `wait_s`."""

    name, min_members = "rank", 2

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    async def score_group(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        await asyncio.sleep(self._wait_s)
        return [Score(float(i), explanation=f"place {i}") for i in range(len(episodes))]


async def test_every_scorer_is_timed_by_itself_those_of_groups_too() -> None:
    rubric = Rubric([(Slow(0.05), 1.0), (Ranks(0.1), 1.0)])
    first, second = await rubric.score_group([await rubric.judge(SAID), await rubric.judge(SAID)])
    assert isinstance(first, Scored) and isinstance(second, Scored)
    assert second.labels == {"slow": {"predicted": "7", "explanation": "took its time"}, "rank": {"explanation": "place 1"}}
    assert first.labels["rank"] == {"explanation": "place 0"}
    assert first.seconds["slow"] >= 0.05 and first.seconds["rank"] >= 0.1


@pytest.mark.parametrize("success", ["", "verdict", "cost"])
def test_explanations_keep_the_name_of_whoever_gave_them(success: str) -> None:
    given = {"verdict": {"predicted": "a", "explanation": "why"}, "cost": {"explanation": "dear"}}
    found = named_labels(given, {}, success)
    assert {name: said for name, said in found.items() if "predicted" not in name} == {
        "verdict.explanation": "why",
        "cost.explanation": "dear",
    }


# --------------------------------------------------------------------------------------------------------------- the episode, stored

PLUGIN = f"""
from burnish import Score, reward

@reward("why-test/right-v1")
def right(episode):
    return Score(float(episode.answer == "7"), explanation={HOSTILE!r})

@reward("why-test/first-v1", level="group", min_members=2)
def first(episodes):
    return [Score(float(i == 0), explanation=f"place {{i + 1}} of {{len(episodes)}}") for i in range(len(episodes))]

@reward("why-test/silent-v1")
def silent(episode):
    return float(len(episode.answer or ""))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("why")
    (folder / "why.py").write_text(PLUGIN)
    used = [{"use": f"why-test/{name}-v1", "name": name} for name in ("right", "first", "silent")]
    made = recipe(tiny_model(folder / "tiny"), "burnish/Arithmetic-v0", plugins=[str(folder / "why.py")], rewards=used)
    return stored(made, played(made, seeded(2), ["7", "12"]), folder / "runs" / "why-1")


def test_an_episode_keeps_why_and_how_long_and_no_reward_sees_either(run: Path) -> None:
    for episode in chosen(run, Which()):
        found = verdicts(episode.parts, episode.metrics, episode.labels)
        assert [one.scorer for one in found] == ["right", "first", "silent"]
        assert [one.explanation for one in found] == [SHOWN, f"place {episode.sample + 1} of 2", ""]
        assert all(one.seconds is not None and 0.0 <= one.seconds < 60.0 for one in found)
        assert [one.value for one in found] == [episode.parts[name] for name in ("right", "first", "silent")]
        assert reward_input(episode).metrics.keys() == {"turns"}


def test_seconds_and_words_are_no_divergence_and_regrading_gives_the_same(run: Path) -> None:
    again = CliRunner().invoke(app, ["replay", str(run), "--all", "--trust"])
    assert (again.output, again.exit_code) == ("4 episodes replayed: 4 the same, 0 differ\n", 0)
    plugin = str(run.parents[1] / "why.py")
    same = ["regrade", str(run), "--reward", "why-test/right-v1", "--plugin", plugin, "--against", "right", "--json"]
    graded = CliRunner().invoke(app, same)
    assert graded.exit_code == 0 and json.loads(graded.output)["disagreements"] == [], graded.output


def test_the_page_of_an_episode_shows_its_verdicts_inert(run: Path) -> None:
    with TestClient(pages(run.parent)) as client:
        page = client.get(f"/rollouts/{run.name}/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-0/0")
        listed = client.get(f"/rollouts/{run.name}/episodes")
    assert page.status_code == listed.status_code == 200
    verdict = page.text.partition('<h2 id="verdicts">')[2].partition("</section>")[0]
    assert "<td>right</td>" in verdict and "<td>first</td>" in verdict and "<td>silent</td>" in verdict and "place 1 of 2" in verdict
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:alert(1)) \\x1b[31mred \\u202egnp" in verdict
    assert "<img" not in verdict and "<script>" not in verdict and "/judge_seconds" not in page.text
    time = page.text.partition('<h2 id="time">')[2].partition("</table>")[0]
    for name in ("right", "first", "silent"):
        assert re.search(rf"<title>{name}: \d\.\d{{3}} s</title>", time) and re.search(rf"<span>{name} \d\.\d{{3}} s</span>", time)


def test_the_terminal_says_why(run: Path) -> None:
    out = io.StringIO()
    print_rollouts(run, Selection(episode="train-0/0"), Console(file=out, width=400))
    assert f"right: {SHOWN}" in out.getvalue() and "first: place 1 of 2" in out.getvalue() and "\x1b" not in out.getvalue()


def test_a_store_of_anybody_has_verdicts_of_any_size_and_none_at_all() -> None:
    assert verdicts({"env": 1.0, "right": 0.5}, {"turns": 1.0}, {"expected": "7"}) == []
    found = verdicts(
        {"b": 1.0},
        {"a/judge_seconds": 2.0, "judge_seconds": 3.0},
        {"b.explanation": "x" * 5000, ".explanation": "", "a.b.explanation": "y"},
    )
    assert found == [
        ScorerVerdict("b", 1.0, None, "x" * (MAX_EXPLANATION - 1) + "…"),
        ScorerVerdict("a", None, 2.0, ""),
        ScorerVerdict("", None, None, ""),
        ScorerVerdict("a.b", None, None, "y"),
    ]
