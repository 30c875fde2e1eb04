"""The attempts at one task, side by side: what each earned and said, in bounds that are said, on the server and in a bundle."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_bundle import db as db
from tests.unit.test_inspector_bundle import files
from tests.unit.test_inspector_bundle import run as run
from tests.unit.test_inspector_pages import EPISODE, NAME
from tests.unit.test_inspector_pages import client as client
from tests.unit.test_inspector_pages import root as root
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Message, Reward, ToolCall
from burnish.inspector import library
from burnish.inspector.database import Database
from burnish.inspector.pages import groups, links
from burnish.inspector.pages.bundle import write_bundle
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

AT = "phase=rft&step=1&split=train&mode=sampled"
GROUP = f"{NAME}/group?{AT}&task=train-1"
ASKED = (Message("system", "Judge the part."), Message("user", "Part 7?"))


def sections(page: str) -> list[str]:
    return [html.unescape(part.partition("</section>")[0]) for part in page.split("<section data-row>")[1:]]


def put(root: Path, said: Sequence[Sequence[Message]], step: int = 5) -> str:
    """A group in which each attempt was given the same and said something of its own; its address."""
    attempts = [replace(episode(7, i, Reward(float(i))), messages=(*ASKED, *chat)) for i, chat in enumerate(said)]
    stored(root / "nano-20260101-000000" / "episodes", *attempts, moment=Moment("rft", step, "train", "sampled"))
    return f"{NAME}/group?{AT.replace('step=1', f'step={step}')}&task=train-7"


def test_the_attempts_stand_side_by_side_with_reward_parts_and_advantage(client: TestClient) -> None:
    page = client.get(GROUP).text
    assert "train-1, 3 attempts" in page and "reward 0.5 on average, 0 to 1" in page and "1 failed" in page
    first, second, third = sections(page)
    assert "reward 1" in first and 'advantage <b class="good">+0.500' in first and "expected <script>" in first and " 1</span>" in first
    assert "reward 0" in second and "advantage" not in second and " 0</span>" in second
    assert "failed: tool_error in <script>" in third and "reward" not in third
    for i, section in enumerate((first, second, third)):
        assert f'/episode?{AT}&episode=train-1%2F{i}">train-1/{i}</a>' in section and "→ look(" in section


def test_a_group_is_reached_from_lists_and_from_an_episode(client: TestClient) -> None:
    for path, count in ((f"{NAME}/episodes", 3), (EPISODE, 1)):
        assert html.unescape(client.get(path).text).count(f'href="{GROUP}"') == count


def test_a_task_whose_name_no_address_holds_is_no_link(root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LONGEST", len("train-1/0"))
    assert client.get(f"{NAME}/episodes").text.count("side by side") == 3
    monkeypatch.setattr(links, "LONGEST", len("train-1") - 1)
    assert "side by side" not in client.get(f"{NAME}/episodes").text


def test_what_all_were_given_stands_once_and_then_what_each_said(root: Path, client: TestClient) -> None:
    page = client.get(put(root, [[Message("assistant", f"verdict {i}"), Message("user", "Sure?")] for i in range(3)])).text
    assert page.count("Judge the part.") == page.count("Part 7?") == 1 and page.index("Part 7?") < page.index("<section data-row>")
    assert [re.findall(r"verdict \d", section) for section in sections(page)] == [["verdict 0"], ["verdict 1"], ["verdict 2"]]
    assert page.count("Sure?") == 3


def test_a_large_group_is_turned_page_by_page(root: Path, client: TestClient) -> None:
    at = put(root, [[Message("assistant", f"verdict {i}")] for i in range(30)])
    seen = list[str]()
    for number, range_ in enumerate(("1 to 12", "13 to 24", "25 to 30"), start=1):
        page = client.get(f"{at}&page={number}").text
        assert "30 attempts" in page and f"here {range_}" in page and "0 to 29" in page
        assert [word in page for word in (">Back<", ">Further<")] == [number > 1, number < 3]
        seen += re.findall(r"verdict \d+", page)
    assert seen == [f"verdict {i}" for i in range(30)]
    assert client.get(f"{at}&page=4").status_code == 410 and client.get(f"{at}&page=x").status_code == 400


def test_long_conversations_are_cut_and_the_page_says_so(root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ToolCall("1", "look", {"at": "y" * 50_000})
    chats = [[Message("assistant", "x" * 50_000)], [Message("assistant", "short", (call,))], [Message("tool", "")] * 300]
    page = client.get(put(root, [*chats, [Message("assistant", "ok")]])).text
    cut = "Cut after 20,000 characters or 200 messages"
    assert [cut in section for section in sections(page)] == [True, True, True, False]
    assert page.count("x" * 20_000) == 1 and "x" * 20_001 not in page and "y" * 100 not in page and len(page) < 100_000
    monkeypatch.setattr(library, "READ_AT_ONCE", 1)
    assert "too large together" in client.get(GROUP).text


def test_names_parts_and_details_are_cut_to_what_a_page_bears(root: Path, client: TestClient) -> None:
    many = {f"part {i} {'p' * 500}": 1.0 for i in range(60)}
    broke = Failure(FailureKind.TOOL_ERROR, "c" * 5000, "d" * 5000)
    attempts = [
        replace(episode(7, 0, Reward(1.0, many)), labels={"expected": "e" * 5000, "predicted": "f" * 5000}),
        episode(7, 1, broke),
    ]
    stored(root / "nano-20260101-000000" / "episodes", *attempts, moment=Moment("rft", 5, "train", "sampled"))
    page = client.get(f"{NAME}/group?{AT.replace('step=1', 'step=5')}&task=train-7").text
    assert page.count(">part ") == 50 and "10 parts more are on its own page" in page and len(page) < 30_000
    assert [max(map(len, re.findall(f"{letter}+", page))) for letter in "cdef"] == [199, 599, 199, 199]


@pytest.mark.parametrize("at", [f"{AT}&task=none", AT, f"{AT.replace('step=1', 'step=9')}&task=train-1", "task=train-1"])
def test_a_group_that_is_not_there_is_said_in_a_line(client: TestClient, at: str) -> None:
    answer = client.get(f"{NAME}/group?{at}")
    assert answer.status_code == 410 and "no such task there" in answer.text


def test_a_bundle_has_the_groups_of_the_episodes_that_have_pages(
    run: Path, tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "BESIDE", 2)
    write_bundle(run, tmp_path / "all", 100, db)
    made = {name: page for name, page in files(tmp_path / "all").items() if "/group-" in name}
    assert sorted(name.partition(f"{run.name}/")[2] for name in made) == [
        *(f"rft.000000.heldout.sampled/group-{i}.html" for i in range(3)),
        "rft.000001.train.sampled/group-0.html",
        *(f"rft.000002.heldout.sampled/group-{i}.html" for i in range(3)),
    ]
    (trained,) = (page for name, page in made.items() if "train.sampled" in name)
    assert "3 attempts" in trained and "here 1 to 2" in trained and ">Further<" not in trained
    write_bundle(run, tmp_path / "few", 1, db)
    (few,) = (page for name, page in files(tmp_path / "few").items() if "/group-" in name)
    assert few.count("<h2><a") == 1 and few.count("<section data-row>") == 2
