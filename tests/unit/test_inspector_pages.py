"""The pages without a browser: what they show, that hostile text stays text, and whom they answer."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.unit.test_inspector import run as run

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Reward, Task, ToolCall, Trajectory
from burnish.inspector.account import times_of
from burnish.inspector.hits import MARKS
from burnish.inspector.pages import app, dashboard
from burnish.inspector.pages.access import WithKey
from burnish.inspector.pages.app import ASSETS, pages
from burnish.inspector.pages.runs import list_runs
from burnish.inspector.pages.tokens import shown_tokens
from burnish.inspector.pages.views import known_of
from burnish.inspector.report import render_report
from burnish.inspector.runs import read_run
from burnish.rollout.store import json_lines
from burnish.rollout.store.episodes import EpisodeStore, text
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, EvaluationResult, RollBackRow, read_alarms
from burnish.run.folder import RunFolder
from burnish.trainer.evaluation.comparison import comparisons

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script>\n[x](javascript:alert(1)) \x1b[31mred \u202egnp \ud83d </pre><img src=x onerror=alert(2)> \"'&"
WHY = {"expected": "pass", "predicted": "scrap", f"{HOSTILE}.explanation": "the bore is too wide"}
"""Of the episode that earned nothing: what was expected, what it said, and why its only scorer gave it nothing."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "nano-20260101-000000"
    (run / "episodes").mkdir(parents=True)
    for name, content in (("config.json", {"name": "<b>nano</b>"}), ("seeds.json", {"run": 1}), ("versions.json", {"packages": {}})):
        (run / name).write_text(json.dumps(content))
    row = {"phase": "rft", "step": 1, "time": 1.0, "reward_mean": 0.5, "success": 0.25}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    task, ids = Task("train-1", 1), np.arange(4, dtype=np.int32)
    mask, logprobs = np.array([0, 0, 1, 1], bool), np.array([0, 0, -1, -6], np.float32)
    trajectory = Trajectory(ids, mask, logprobs, np.where(mask, 0, -1).astype(np.int32))
    said = (Message("user", HOSTILE), Message("assistant", HOSTILE, (ToolCall("1", "look", {"at": HOSTILE}),)))
    episodes = [
        Episode(task, 0, (trajectory,), said, Reward(1.0, {HOSTILE: 1.0}), labels={"expected": HOSTILE, "predicted": "b"}),
        Episode(task, 1, (trajectory,), said, Reward(0.0, {HOSTILE: 0.0}), metrics={HOSTILE: 2.0}, labels=WHY),
        Episode(task, 2, (), said, Failure(FailureKind.TOOL_ERROR, HOSTILE, HOSTILE)),
    ]
    measured = {name: np.array([0, 0, -1.0, 2.0], np.float32) for name in ("logprobs", "advantage", "entropy", "ratio")}
    with EpisodeStore(run / "episodes", run.name) as store:
        store.put(Moment("rft", 1, "train", "sampled"), episodes, {"train-1/0": [measured]})
    (tmp_path / "runs" / "a model").mkdir()
    (tmp_path / "runs" / "a model" / "config.json").write_text("{}")
    (tmp_path / "runs" / "linked").symlink_to(run)
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with TestClient(pages(root), base_url="http://127.0.0.1:8266") as client:
        yield client


NAME = "/rollouts/nano-20260101-000000"
EPISODE = f"{NAME}/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-1/0"
PAGES = [
    "/rollouts", NAME, f"{NAME}/episodes", f"{NAME}/episodes?order=worst&failed=yes&text=alert", EPISODE, f"{EPISODE}&colour=advantage",
    EPISODE.replace("/episode?", "/group?").replace("episode=train-1/0", "task=train-1"),
    EPISODE.replace("train-1/0", "train-1/1"), EPISODE.replace("train-1/0", "train-1/2"), f"{NAME}/episodes?text={quote('<script>')}",
]  # fmt: skip


class Elements(HTMLParser):
    """Every element and its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", PAGES)
def test_hostile_text_stays_text(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    elements = Elements(answer.text).found
    assert [attrs["src"] for tag, attrs in elements if tag == "script"] == [f"/rollouts/static/{_asset('page.js')}"]
    assert not [tag for tag, _ in elements if tag in {"img", "iframe", "object", "embed", "style", "base"}]
    assert not [name for _, attrs in elements for name in attrs if name.startswith("on") or name == "style"]
    links = [attrs.get("href") or "" for tag, attrs in elements if tag == "a"]
    assert all(link.startswith(("/rollouts", "?", "#")) for link in links), links
    assert not re.search("[\x1b\u202e\ud800-\udfff]", answer.text)


def _asset(name: str) -> str:
    from burnish.inspector.pages.links import asset_name

    return asset_name(name)


@pytest.mark.parametrize("path", [*PAGES, "/rollouts/nothing", f"/rollouts/static/{'x.' + next(iter(ASSETS))}"])
def test_every_answer_forbids_what_the_pages_do_not_need(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"], policy["frame-ancestors"]) == ("'none'", *["'self'"] * 3)
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")


def test_what_is_shown_of_an_episode(client: TestClient) -> None:
    page = client.get(EPISODE).text
    assert "reward 1" in page and "3 attempts" in page and "+0.500" in page  # the mean of -1 and 2 over what was sampled
    assert page.count('class="t sampled') == 2 and "weights 0" in page
    data = client.get(f"{EPISODE}&json=1").json()
    assert (data["reward"], data["advantages"], data["messages"][1]["tool_calls"][0]["function"]["name"]) == (1.0, [0, 0, -1, 2], "look")


def test_why_the_worst_rollout_of_the_last_step_scored_so_is_found_by_links_alone(client: TestClient) -> None:
    def followed(page: str, words: str) -> str:
        (there,) = re.findall(rf'<a [^>]*href="([^"]*)"[^>]*>{words}[^<]*</a>', page)[:1]
        return client.get(html.unescape(there)).text

    listed = followed(followed(client.get("/rollouts").text, "nano-20260101-000000"), "Worst of the last step")
    page = followed(listed.partition("<tbody>")[2], "train-1/")
    assert "<h1>train-1/1</h1>" in page
    shown = html.unescape(page.partition('<p class="outcome">')[2].partition("</p>")[0])
    assert "<b>reward 0</b>" in shown and re.search(r"alert\(1\).* 0</span>", shown, re.DOTALL) and "expected pass, said scrap" in shown
    table = page.partition('id="verdicts"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    (verdict,) = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    assert "alert(1)" in verdict and "<td>0</td>" in verdict and '<td class="why">the bore is too wide</td>' in verdict


def test_what_task_and_environment_knew_is_shown_where_they_knew_any(root: Path, client: TestClient) -> None:
    knew = Task("train-9", 1, data={"truth": HOSTILE, "limit": float("inf")})
    said = (Message("user", "hi"),)
    episodes = [
        Episode(knew, 0, (), said, Reward(0.0), env_data={"seen": [1, {"a": 2}]}),
        Episode(Task("train-8", 1), 0, (), said, Reward(0.0)),
        Episode(Task("train-7", 1, data={"long": ["x" * 999] * 99}), 0, (), said, Reward(0.0)),
    ]
    with EpisodeStore(root / "nano-20260101-000000" / "episodes", "nano") as store:
        store.put(Moment("rft", 2, "train", "sampled"), episodes)
    at = EPISODE.replace("step=1", "step=2")
    page = client.get(at.replace("train-1/0", "train-9/0")).text
    assert not re.search("[\x1b\u202e\ud800-\udfff]", page) and "<script>alert" not in page
    shown = html.unescape(page.partition("What the environment knew")[2].partition('id="tokens"')[0])
    assert '"truth": "<script>alert(1)</script>\\n' in shown and '"limit": Infinity' in shown
    assert '{\n  "seen": [\n    1,\n    {\n      "a": 2\n    }\n  ]\n}' in shown
    assert "What the environment knew" not in client.get(at.replace("train-1/0", "train-8/0")).text
    long = client.get(at.replace("train-1/0", "train-7/0")).text
    assert 20_000 < len(long) < 60_000 and "79,208 characters more are in the store" in long


@pytest.mark.parametrize("found", ["", "&text=bore", "&text=a"])
def test_ten_megabytes_of_hostile_text_stay_text_and_are_a_page_in_proportion(root: Path, client: TestClient, found: str) -> None:
    large = HOSTILE + "measure a bore </pre>, " * 440_000
    said = (Message("user", "hi"), Message("assistant", large))
    with EpisodeStore(root / "nano-20260101-000000" / "episodes", "nano") as store:
        store.put(Moment("rft", 2, "train", "sampled"), [Episode(Task("train-9", 1), 0, (), said, Reward(0.0))])
    path = EPISODE.replace("step=1", "step=2").replace("train-1/0", "train-9/0") + found
    test_hostile_text_stays_text(client, path)
    page = client.get(path).text
    assert len(large) > 10_000_000 and len(large) < len(page) < 1.5 * len(large)
    assert page.count("<mark>") == (MARKS if found else 0) and page.count("&lt;/pre&gt;") == 440_001
    assert ("Of more hits, the first 1,000 are marked" in page) == bool(found)


@pytest.mark.parametrize("stored", ["no JSON", "[" * 5000, '{"a":' * 500 + "[" + "1," * 5000 + "1]" + "}" * 500])
def test_what_is_no_plain_json_is_shown_as_it_is_stored(stored: str) -> None:
    assert known_of({"task_data": stored, "env_data": None}) == [("The task", stored, 0)]


def evaluated(*values: float) -> EvaluationResult:
    n = len(values)
    tasks = {f"h-{i}": value for i, value in enumerate(values)}
    return EvaluationResult("sampled", "env", n, n, sum(values) / n, 0.1, 0.9, 1.0, 1.0, 1.0, tasks)


def test_a_run_shows_its_evaluations_its_books_and_the_way_to_the_worst_episode(run: Path) -> None:
    better = evaluated(1.0, 1.0, 1.0, 0.0)
    against = comparisons({"base": evaluated(0.0, 0.0, 0.0, 0.0)}, better)
    RunFolder(run).log_evaluation(EvaluationRecord(phase="rft", step=2, against=against, result=better))
    tried, measured, before = (
        Episode(Task(task, 1), 0, (), (Message("user", "hi"),), Reward(0.0)) for task in ("train-1", "held-2", "held-1")
    )
    with EpisodeStore(run / "episodes", run.name) as store:
        store.put(Moment("rft", 2, "train", "sampled"), [tried])
        store.put(Moment("rft", 2, "heldout", "sampled"), [measured])
        store.put(Moment("rft", 1, "heldout", "sampled"), [before])
    with TestClient(pages(run)) as client:
        page = client.get(f"/rollouts/{run.name}").text
        for said, listed in (("Worst of the last step", "train-1/0"), ("episodes", "held-2/0")):
            link = re.findall(f'href="([^"]*)">{said}', page)[-1]
            rows = re.findall(r"<tr data-row><td><a [^>]*>([^<]*)<", client.get(html.unescape(link)).text)
            assert rows == [listed], "of that step alone, and of what it trained on or was measured on"
    assert "<td>1 <small>of 4, tool_timeout 1</small></td>" in page
    assert "Evaluations" in page and "Where the episodes went" in page
    assert "Worst of the last step (rft 2)" in page
    assert re.search(r"against base, .*test, n = 4 ", page), "no figure without the number of tasks that it is of"


def test_a_run_shows_its_reward_with_an_interval_and_by_part_how_long_and_what_was_cut_short(run: Path) -> None:
    assert "95 % interval of its mean" not in _page(run)
    played = [Episode(Task(f"train-{i}", 1), 0, (), (Message("user", "hi"),), Reward(i / 4)) for i in range(4)]
    with EpisodeStore(run / "episodes", run.name) as store:
        for step in (1, 2):
            store.put(Moment("rft", step, "train", "sampled"), played)
    said: dict[str, Any] = {"parts": {"env": 0.25, HOSTILE.replace("\ud83d", ""): 1.0}, "tokens": 41.5, "truncations": {"context": 2}}
    RunFolder(run).log_evaluation(EvaluationRecord(phase="rft", step=2, result=replace(evaluated(1.0, 0.0), **said)))
    page = _page(run)
    drawn = page.partition("<b>reward, 95 % interval</b>")[2].partition("</figure>")[0]
    assert "0.375 → 0.375" in drawn and '<polygon class="band s0"' in drawn
    assert '<span class="chip">env 0.25</span><span class="chip">&lt;script&gt;alert(1)' in page and "<script>alert" not in page
    assert "<td>41.5</td>\n<td>2 <small>of 2, context 2</small></td>" in page
    damaged = next((run / "episodes").glob("rft.000002.*"))
    damaged.write_bytes(damaged.read_bytes()[:99])
    page = _page(run)
    assert "The reward's interval cannot be shown: " in page and "<b>reward_mean</b>" in page


def test_a_run_leads_to_its_report_in_which_nothing_runs_and_says_where_its_logs_are(run: Path) -> None:
    assert "/report" not in _page(run) and "logs/" not in _page(run)
    hostile = '<script>alert(1)</script><meta http-equiv="refresh" content="0; url=http://example.invalid"><b onclick="x()">hi</b>'
    (run / "report.html").write_text(hostile)
    (run / "logs").mkdir()
    (run / "logs" / "verdicts.log").write_text("ready")
    page = _page(run)
    assert f'<a class="button" href="/rollouts/{run.name}/report">Report</a>' in page and f"<code>{run.name}/logs/</code>" in page
    with TestClient(pages(run)) as client:
        answer = client.get(f"/rollouts/{run.name}/report")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy and "frame-ancestors 'self'" in policy
        elements = Elements(answer.text).found
        assert [tag for tag, _ in elements] == ["meta", "meta", "meta", "title", "style", "iframe"]
        assert elements[-1][1]["srcdoc"] == hostile and elements[-1][1]["sandbox"] in ("", None)
        (run / "report.html").unlink()
        assert client.get(f"/rollouts/{run.name}/report").status_code == 410
        (run / "report.html").symlink_to("/etc/hostname")
        refused = client.get(f"/rollouts/{run.name}/report")
    assert refused.status_code == 400 and "leads out of the folder" in refused.text


def alarmed(run: Path, *rows: AlarmRow | RollBackRow) -> None:
    """Alarms, and the ways back that were gone for them, as a run writes them."""
    for row in rows:
        with (run / ("alarms.jsonl" if isinstance(row, AlarmRow) else "roll_backs.jsonl")).open("a") as file:
            file.write(json.dumps(row.to_row()) + "\n")


def alarm(step: int, action: str = "warn", guard: str = "parting", text: str = "reward rose and success did not") -> AlarmRow:
    return AlarmRow(phase="rft", step=step, guard=guard, action=action, text=text)


def test_alarms_stand_above_the_evaluations_the_latest_first_with_what_was_done(run: Path) -> None:
    with TestClient(pages(run)) as client:
        assert "Alarms" not in client.get(f"/rollouts/{run.name}").text
        alarmed(run, alarm(3), alarm(5, "roll_back", "kl"), RollBackRow(phase="rft", step=5, guards=("kl",), position=80))
        alarmed(run, alarm(5, "roll_back", "kl"), alarm(6, "stop", "drift"))
        page = client.get(f"/rollouts/{run.name}").text
    assert page.index("<h2>Alarms") < page.index("<h2>Evaluations")
    said = re.findall(r"<b>(\w+)</b>: reward rose and success did not</td>\s*<td><span class=\"chip \w+\">([^<]*)<", page)
    assert said == [("drift", "stopped"), ("kl", "was to roll back"), ("kl", "rolled back"), ("parting", "warned")]
    assert "<h2>Alarms</h2>" in render_report(read_run(run), ())


def test_of_many_alarms_fifty_are_shown_and_none_at_length(run: Path) -> None:
    alarmed(run, *(alarm(step, text=f"found-{step} {'x' * 5000}") for step in range(1, 63)))
    with TestClient(pages(run)) as client:
        page = client.get(f"/rollouts/{run.name}").text
    for shown in (page, render_report(read_run(run), ())):
        assert [int(step) for step in re.findall(r"found-(\d+) ", shown)] == list(range(62, 12, -1))
        assert "12 more came before these" in shown and "x" * 700 not in shown
    assert "45 earlier alarms" in page


def test_alarms_of_a_stranger_are_text_and_a_line_that_cannot_be_read_is_said(root: Path, client: TestClient) -> None:
    run = root / "nano-20260101-000000"
    said = HOSTILE.replace("\ud83d", "")
    alarmed(run, AlarmRow(phase=said, step=10**400, guard=said, action=said, text=said))
    with (run / "alarms.jsonl").open("a") as file:
        file.write('{"schema": 1, "<script>": 1}\nno json\n{"schema": 1, "step": -1}\n[]\n{"schema": 2}\n')
    alarmed(run, alarm(4, text="the last"))
    (run / "roll_backs.jsonl").write_text("<img src=x>\n")
    test_hostile_text_stays_text(client, NAME)
    page = client.get(NAME).text
    assert page.index("the last") < page.index("1" + "0" * 18 + "…") < page.index("A line cannot be read: alarms.jsonl:2: ")
    assert page.count("A line cannot be read: ") == 3 and "3 more lines cannot be read" in page and str(root) not in page
    with pytest.raises(ValueError, match=r"alarms.jsonl:2: "):
        read_alarms(run / "alarms.jsonl")
    assert "3 more lines cannot be read" in render_report(read_run(run), ())


def test_behind_a_line_that_no_alarm_is_as_long_as_nothing_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarmed(run, alarm(1), alarm(2, text="x" * 3000), alarm(3))
    monkeypatch.setattr(json_lines, "MOST_LINE_BYTES", 2048)
    found = read_run(run)
    assert [row.step for row in found.alarms] == [1] and found.unread[0].startswith("alarms.jsonl:2: the line is longer than")


def accounted(run: Path, step: int, busy: Sequence[float] = (3.0, 1.0, 0.5, 1.5), **more: float) -> None:
    """A step of four seconds in which engine, environment, rewards and learner were busy for so long."""
    parts = dict(zip(("engine", "environment", "rewards", "learner"), busy, strict=True))
    seconds = {f"busy/{part}_seconds": value for part, value in parts.items()}
    seconds |= {f"idle/{part}_seconds": 4.0 - value for part, value in parts.items()}
    with JsonLines(run / "metrics.jsonl") as lines:
        lines.append({"phase": "rft", "step": step, "time": 1.0, **seconds, "sync_seconds": 0.25, "step_seconds": 4.0, **more})


def test_where_the_time_of_the_last_steps_went_stands_beside_the_curves(run: Path) -> None:
    assert "Where the time went" not in _page(run) + render_report(read_run(run), ())
    accounted(run, 3, (0.0, 0.0, 0.0, 4.0))
    for step in range(4, 24):
        accounted(run, step)
    for page in (_page(run), render_report(read_run(run), ())):
        said = re.sub(r"<[^>]*>|\s+", " ", page)
        assert re.search(r"Engines +75.0 % +25.0 % +3 +1 ", said) and re.search(r"Rewards and verifiers +12.5 % +87.5 %", said)
        assert re.search(r"Learner +37.5 % +62.5 %", said) and re.search(r"Sending weights +– +– +0.25", said)
        assert "The mean of the last 20 steps, which took 4 s each" in said and "Engines and learner take turns; rft.rollouts" in said
    (run / "config.json").write_text(json.dumps({"name": "demo", "rft": {"rollouts": "async"}}))
    assert "Nobody is busy for long" in _page(run)
    accounted(run, 23, (0.0, 3.0, 0.0, 0.0))  # once more, after a resume
    times = times_of(read_run(run))["rft"]
    assert (times.steps, times.parts[1].busy_s) == (20, pytest.approx(1.1))


def test_an_account_that_no_run_writes_is_left_out(run: Path) -> None:
    for step, wrong in enumerate(("-1", "1e308", "-1e308"), start=3):
        accounted(run, step)
        file = run / "metrics.jsonl"
        file.write_text(file.read_text().replace('"busy/learner_seconds":1.5', f'"busy/learner_seconds":{wrong}'))
    assert "Where the time went" not in _page(run)
    accounted(run, 6, sync_seconds=-3.0)
    assert "The mean of the last 1 step, " in _page(run) and "Sending weights" not in _page(run)
    (run / "config.json").write_text('{"phases": [{"kind": "rft", "rollouts": ["<script>"]}, 3]}')
    assert "Nobody is busy for long" in _page(run)


def test_how_old_and_how_far_off_what_was_trained_on_is_and_what_was_blended_can_be_read(run: Path) -> None:
    assert "Samples and weights" not in _page(run) and "<h2>Blend" not in _page(run)
    (run / "config.json").write_text('{"rft": {"blend": [{"name": "<script>x", "environment": "a/b-v0", "percent": 25}]}}')
    more = {"learner/staleness_mean": 1.5, "learner/mismatch_kl": 2e-7, "groups_sampled": 4.0, "blend/<script>x": 0.5}
    accounted(run, 3, (3.0, 1.0, 0.5, 1.5), **more)
    page = _page(run)
    assert "<dt>updates since a token was sampled</dt><dd>1.5</dd>" in page and "equal weights</dt><dd>2e-07</dd>" in page
    said = re.sub(r"<[^>]*>|\s+", " ", page[page.index("<h2>Blend") :])
    assert re.search(r"own +75.0 % +of tasks +50.0 %", said) and re.search(r"&lt;script&gt;x +25.0 % +of tasks +50.0 %", said)
    (run / "config.json").write_text('{"rft": {"blend": ["<img src=x>"]}}')
    page = _page(run)
    assert "What was blended cannot be read: " in page and "Where the episodes went" in page


def _page(run: Path) -> str:
    with TestClient(pages(run)) as client:
        return client.get(f"/rollouts/{run.name}").text


def test_the_worst_are_of_the_last_step_that_has_episodes(root: Path, client: TestClient) -> None:
    with (root / "nano-20260101-000000" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"phase": phase, "step": 2, "time": 2.0, "loss": 1.0}) + "\n" for phase in ("rft", "sft"))
    page = client.get(NAME).text
    assert "Worst of the last step (rft 1)" in page
    for stored in (root / "nano-20260101-000000" / "episodes").iterdir():
        stored.unlink()
    assert "Worst of the last step" not in client.get(NAME).text


def test_lists_choose_and_turn_pages(client: TestClient) -> None:
    assert "3 episodes" in client.get(f"{NAME}/episodes").text
    assert "1 episode<" in client.get(f"{NAME}/episodes?failed=yes").text
    assert "0 episodes" in client.get(f"{NAME}/episodes?step=7").text
    assert "Nothing here is like that" in client.get(f"{NAME}/episodes?text=nobody+said+this").text
    first = client.get(f"{NAME}/episodes?order=worst&failed=no").text
    assert first.index("train-1/1") < first.index("train-1/0")


def test_a_search_shows_where_its_words_stand_in_the_list_and_in_the_conversation(client: TestClient) -> None:
    page = client.get(f"{NAME}/episodes?text=ALER&failed=no").text
    assert '<tr class="hit"><td colspan="11">' in page and "<mark>aler</mark>t" in page
    link = html.unescape(next(iter(re.findall(r'href="([^"]*text=ALER#hit)"', page))))
    shown = client.get(link).text
    assert shown.count('id="hit"') == 1 and "<mark>aler</mark>t" in shown
    assert "<script>alert" not in page + shown
    assert "<mark>" not in client.get(EPISODE).text + client.get(f"{NAME}/episodes").text


MALFORMED = {
    "order=drop": "order: 'drop' is none of latest", "step=x": "step: 'x' is no whole", "step=-1": "step: '-1' is no whole",
    "page=1e9": "page: '1e9' is no whole", "step=99999999999": "is no whole", "page=²": "is no whole", "failed=maybe": "neither yes nor no",
    "reward_from=much": "reward_from: 'much' is no number", "reward_to=nan": "'nan' is no number", "reward_to=1e999": "is no number",
    "reward_to=1_0": "is no number", "tokens_from=-1": "tokens_from: '-1' is no whole", "tokens_to=1.5": "is no whole",
    "reward_from=1&reward_to=0.5": "reward: from 1 to 0.5 is no range", "version_from=2&version_to=1": "version: from 2 to 1 is no range",
    "part_from=1": "part: name the part", "order=part+lowest": "part: name the part",
}  # fmt: skip


@pytest.mark.parametrize("asked", MALFORMED)
def test_malformed_questions_are_refused_in_a_line_of_the_form_that_they_came_from(client: TestClient, asked: str) -> None:
    answer = client.get(f"{NAME}/episodes?task=a<b&{asked}")
    assert answer.status_code == 400
    said = html.unescape(answer.text)
    assert MALFORMED[asked] in said and "Traceback" not in said and "0 episodes" not in said
    assert '<details class="more" open' in said
    assert ("input", "task", "a<b") in [(tag, attrs.get("name"), attrs.get("value")) for tag, attrs in Elements(answer.text).found]


NARROWED = {
    "task=train-1": 3, "task=train-2": 0, "culprit=gauge": 0, "engine=rollout-1": 0, "tool=look": 2 + 1, "tool=loo": 0, "tool=say": 0,
    "reward_from=0.5": 1, "reward_to=0.5": 1, "reward_from=-1e0&reward_to=+1.": 2, "reward_from=.5&reward_to=0.9": 0,
    "tokens_from=1": 2, "tokens_to=1": 1, "tokens_from=2&tokens_to=2": 2, "version_to=5": 0, "version_from=0": 0,
    f"part={quote(text(HOSTILE))}": 2, f"part={quote(text(HOSTILE))}&part_from=0.5": 1, f"part={quote(text(HOSTILE))}&part_to=-1": 0,
    "part=other": 0,
}  # fmt: skip


def test_what_a_list_is_narrowed_by_is_kept_from_page_to_page(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PAGE", 1)
    page = client.get(f"{NAME}/episodes?reward_from=-0.5&tool=look&order=earliest&page=1").text
    (further,) = (attrs["href"] for _, attrs in Elements(page).found if attrs.get("class") == "button")
    assert further == "?reward_from=-0.5&tool=look&order=earliest&page=2"
    assert "2 episodes, 2 to 2" in client.get(f"{NAME}/episodes{further}").text


@pytest.mark.parametrize("asked", NARROWED)
def test_lists_are_narrowed_by_what_stands_in_the_folded_part_of_the_form(client: TestClient, asked: str) -> None:
    page = client.get(f"{NAME}/episodes?{asked}&order=by+task")
    assert page.status_code == 200 and f">{NARROWED[asked]} episode" in page.text
    number = len(asked.split("&"))
    assert f"More to choose by ({number} set)" in page.text and '<details class="more" open data-set>' in page.text
    assert '<details class="more"><summary>More to choose by</summary>' in client.get(f"{NAME}/episodes").text


def test_only_runs_are_shown_and_nothing_beside_them(client: TestClient) -> None:
    front = client.get("/rollouts").text
    assert "nano-20260101-000000" in front and "a model" not in front and "linked" not in front
    for name in ("linked", "a%20model", "..%2fsecret", "%252e%252e", "nano-20260101-000000%2f..", "/etc"):
        answer = client.get(f"/rollouts/{name}", follow_redirects=False)
        assert answer.status_code in {307, 404, 410} and "secret" not in answer.text
    assert client.get("/rollouts/static/x...%2fapp.py").status_code in {404, 410}
    assert client.get(EPISODE.replace("train-1/0", "../../x")).status_code == 410
    assert client.post(NAME).status_code == 405


def test_the_list_of_runs_looks_for_new_ones_whether_or_not_one_is_under_way(root: Path) -> None:
    run = root / "nano-20260101-000000"
    (run / "report.html").write_text("")
    with TestClient(pages(root), base_url="http://127.0.0.1:8266") as client:
        assert 'data-live="15"' in client.get("/rollouts").text
        (run / "report.html").unlink()
        assert 'data-live="5"' in client.get("/rollouts").text


def test_a_run_whose_file_leads_outside_is_refused(root: Path, client: TestClient, tmp_path: Path) -> None:
    (root / "nano-20260101-000000" / "evaluations.jsonl").symlink_to(tmp_path / "secret")
    answer = client.get(NAME)
    assert answer.status_code == 400 and "secret" not in answer.text.replace(str(tmp_path / "secret"), "")


def test_one_run_folder_is_served_as_well(root: Path) -> None:
    with TestClient(pages(root / "nano-20260101-000000")) as client:
        assert client.get(NAME).status_code == 200


def not_for_this_user(monkeypatch: pytest.MonkeyPatch, hidden: Path) -> None:
    """Have the system refuse what lies in a folder, or a file, as it does where that is another user's."""

    def refusing(call: Any) -> Any:
        def called(path: Any, *more: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(hidden) and Path(os.fspath(path)) != folder:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *more, **options)

        return called

    folder = hidden if hidden.is_dir() else None
    for name in ("stat", "lstat", "open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.parametrize("hidden", ["", "config.json", "metrics.jsonl", "checkpoints.jsonl"])
def test_another_users_run_takes_no_page_but_its_own(root: Path, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root / "nano-20260101-000000", root / "other")
    (root / "other" / "checkpoints.jsonl").write_text("")
    not_for_this_user(monkeypatch, root / "other" / hidden)
    with TestClient(pages(root), raise_server_exceptions=False) as client:
        front = client.get("/rollouts")
        assert front.status_code == 200 and NAME in front.text
        assert [client.get(page).status_code for page in (NAME, EPISODE, "/rollouts/-/models")] == [200] * 3
        other = client.get("/rollouts/other")
        assert other.status_code in (400, 410) and "Not here" in other.text


def test_a_run_whose_name_is_no_text_and_one_of_the_far_future_are_shown(root: Path) -> None:
    (root / "nano-20260101-000000").rename(os.fsdecode(os.fsencode(root) + b"/bad\xff"))
    for line in list_runs(root):
        assert (line.name, replace(line, changed=1e15).written[:4], replace(line, changed=-1e15).written[:4]) == (
            "bad\ufffd",
            "9999",
            "1970",
        )
    with TestClient(pages(root)) as client:
        assert "bad\ufffd" in client.get("/rollouts").text
        found = [client.get(f"/rollouts/bad%EF%BF%BD{page}") for page in ("", "/episodes")]
        assert [one.status_code for one in found] == [200, 400] and "cannot be read as stored episodes" in found[1].text  # by DuckDB


# ------------------------------------------------------------------------------------------------------------------ whom it answers

HOSTS = frozenset({"127.0.0.1:8266"})


def keyed() -> Starlette:
    return Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("inside"))])


def test_the_key_is_asked_for_once_and_then_kept_by_the_browser() -> None:
    client = TestClient(WithKey(keyed(), "the-key", HOSTS), base_url="http://127.0.0.1:8266")
    assert client.get("/rollouts").status_code == 401
    assert client.get("/rollouts?key=wrong").status_code == 401
    given = client.get("/rollouts?key=the-key&order=worst", follow_redirects=False)
    assert (given.status_code, given.headers["location"]) == (303, "/rollouts?order=worst")
    assert {"HttpOnly", "SameSite=strict"} <= set(given.headers["set-cookie"].split("; "))
    assert client.get("/rollouts").text == "inside"
    assert (
        TestClient(WithKey(keyed(), "k", HOSTS), base_url="http://127.0.0.1:8266").get("/", headers={"cookie": "a=;;=\x01"}).status_code
        == 401
    )


def test_two_servers_of_one_browser_do_not_lock_each_other_out_nor_learn_the_others_key() -> None:
    """A browser does not tell the cookies of a host's ports apart."""
    first, second = (WithKey(keyed(), f"the-key-{port}", frozenset({f"127.0.0.1:{port}"})) for port in (8266, 8267))
    browser = TestClient(first, base_url="http://127.0.0.1:8266")
    browser.get("/rollouts?key=the-key-8266", follow_redirects=False)
    other = TestClient(second, base_url="http://127.0.0.1:8267", cookies=browser.cookies)
    assert other.get("/rollouts").status_code == 401
    other.get("/rollouts?key=the-key-8267", follow_redirects=False)
    assert {"burnish_8266", "burnish_8267"} == set(other.cookies) and "the-key" not in str(other.cookies)
    for client in (TestClient(first, base_url="http://127.0.0.1:8266", cookies=other.cookies), other):
        assert client.get("/rollouts").text == "inside"
    others = "; ".join(f"{name}={value}" for name, value in other.cookies.items())
    odd = {"cookie": f'theme={{"dark": [1]}}; a=;;=\x01; {others}'}  # of other programs, whose cookies the browser sends along
    assert TestClient(second, base_url="http://127.0.0.1:8267").get("/rollouts", headers=odd).text == "inside"
    assert other.get("/rollouts?key=", headers={"cookie": "burnish_8267=the-key-8267"}).status_code == 401


def test_the_key_opens_no_other_address() -> None:
    client = TestClient(WithKey(keyed(), "the-key", HOSTS), base_url="http://127.0.0.1:8266")
    given = client.get("http://127.0.0.1:8266//evil.example/x?key=the-key", follow_redirects=False)
    assert given.headers["location"].startswith("/evil.example")


@pytest.mark.parametrize("host", ["evil.example:8266", "127.0.0.1:9", "127.0.0.1", ""])
def test_another_name_for_the_same_server_is_refused(host: str) -> None:
    client = TestClient(WithKey(keyed(), "the-key", HOSTS), base_url="http://127.0.0.1:8266")
    assert client.get("/rollouts?key=the-key", headers={"host": host}, follow_redirects=False).status_code == 403


# --------------------------------------------------------------------------------------------------------------------- Ray's dashboard


def test_the_start_page_of_this_ray_gets_an_entry() -> None:
    page = dashboard.start_page()
    assert page is not None, "this release of Ray has another start page: try the entry on it, then add its hash to KNOWN"
    assert page.count(f'<script src="{dashboard.script_path()[1:]}" defer></script></body>') == 1


def test_the_entry_has_another_name_when_it_holds_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tells browsers to keep what is below `/static` for a year."""
    before = dashboard.script_path()
    (tmp_path / "entry.js").write_text("'use strict'")
    monkeypatch.setattr("burnish.inspector.pages.links.STATIC", tmp_path)
    assert dashboard.script_path() != before and re.fullmatch(r"/static/rollouts-[0-9a-f]{12}\.entry\.js", before)


def test_a_start_page_that_nobody_tried_is_left_to_ray(tmp_path: Path, root: Path) -> None:
    (tmp_path / "index.html").write_text("<html><body></body></html>")
    assert dashboard.start_page(tmp_path) is None
    assert dashboard.start_page(tmp_path / "missing") is None


TOKEN = "t" * 32


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray's, which it asks for in this process."""
    from ray import _raylet

    raylet: Any = _raylet  # which has no types
    with monkeypatch.context() as changed:
        changed.setenv("RAY_AUTH_MODE", "token")
        changed.setenv("RAY_AUTH_TOKEN", TOKEN)
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        yield TOKEN
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def test_behind_the_dashboard_only_who_knows_the_path_is_answered(root: Path, token: str) -> None:
    with TestClient(dashboard.with_entry(pages(root, "/key"), "/key"), headers={"authorization": f"Bearer {token}"}) as client:
        assert client.get("/key/rollouts").status_code == 200
        assert client.get("/key/rollouts/", follow_redirects=False).text == client.get("/key/rollouts").text
        assert (script := dashboard.script_path())[1:] in client.get("/key/").text
        assert client.get(f"/key{script}").headers["content-type"].startswith("text/javascript")
        for path in ("/rollouts", "/", "/other/rollouts", "/key/api/version", "/key/static/js/main.js"):
            assert client.get(path).status_code == client.post(path).status_code == 404  # at which Ray answers
        assert client.post("/key/api/authenticate").status_code == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"x-ray-authorization": f"Bearer {TOKEN}"}, 200),
        ({"cookie": f"a=b; ray-authentication-token={TOKEN}"}, 200),
        ({}, 403),
        ({"authorization": "Bearer "}, 403),
        ({"authorization": TOKEN}, 403),
        ({"authorization": "Bearer \xe9".encode()}, 403),
        ({"authorization": f"Bearer {TOKEN}t"}, 403),
        ({"authorization": "Basic x", "cookie": f"ray-authentication-token={TOKEN}"}, 403),
        ({"cookie": "ray-authentication-token="}, 403),
        ({"cookie": "a=;;=\x01"}, 403),
    ],
)
def test_behind_the_dashboard_the_path_alone_opens_nothing_but_the_start_page(
    root: Path, token: str, given: dict[str, Any], status: int
) -> None:
    """Ray puts the path on the command line of its dashboard, where every account of the machine reads it."""
    app = dashboard.with_entry(pages(root, "/key"), "/key")
    client = TestClient(app, headers=given)
    shown = ("", "/", "/-/models", "/nano-20260101-000000", "/nano-20260101-000000/episodes?text=x", "/static/x.style.css")
    assert {client.get(f"/key/rollouts{path}").status_code for path in shown} == {status}
    assert TestClient(app).get("/key/").status_code == 200


def test_behind_the_dashboard_of_a_ray_that_asks_for_no_token_nothing_is_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray calls every token valid then."""
    monkeypatch.setattr("ray._private.authentication.authentication_utils.is_token_auth_enabled", lambda: False)
    client = TestClient(dashboard.with_entry(pages(root, "/key"), "/key"), headers={"authorization": f"Bearer {TOKEN}"})
    assert client.get("/key/rollouts").status_code == 403


def test_the_token_of_a_ray_that_somebody_else_starts_must_be_there(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import _raylet

    raylet: Any = _raylet  # which has no types
    loader = raylet.AuthenticationTokenLoader
    dashboard.ask_for_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "off")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=off: a Ray that asks for no token"):
        dashboard.ask_for_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    loader.instance().reset_cache()
    with pytest.raises(ValueError, match="ray get-auth-token --generate"):
        dashboard.ask_for_token()


# -------------------------------------------------------------------------------------------------------------------------------- tokens


def test_shades_tell_the_value() -> None:
    row = {
        "lengths": [2, 2], "token_ids": [5, 6, 7, 8], "mask": [False, True, True, True], "version": [-1, 1, 1, 2],
        "sampler_logprobs": [0, 0, -3, -60.0], "logprobs": None, "advantages": [0, -1.0, 0.5, 1.0], "ratio": None, "entropy": None,
    }  # fmt: skip
    by_logprob = [[token.shade for token in one] for one in shown_tokens(row, "logprob", None)]
    assert by_logprob == [["", "low-0"], ["low-4", "low-7"]]
    assert [[token.shade for token in one] for one in shown_tokens(row, "advantage", None)] == [["", "low-7"], ["high-4", "high-7"]]
    assert [[token.shade for token in one] for one in shown_tokens(row, "version", None)] == [["", "high-0"], ["high-0", "high-7"]]
    assert {token.shade for one in shown_tokens(row, "ratio", None) for token in one} == {""}
    assert [token.text for one in shown_tokens(row, "logprob", None) for token in one] == ["5 ", "6 ", "7 ", "8 "]
