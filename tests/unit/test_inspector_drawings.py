"""What environments draw of their episodes: the boards and parts of the built-in ones, one of a user's own, and that it stays inert."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model
from tests.unit.test_docs_all_pages import ROOT, blocks

from burnish.envs.builtin.drawings import frozen_lake, quality_inspection
from burnish.envs.builtin.inspection.parts import make_part
from burnish.envs.drawing import DRAWINGS, DrawnEpisode, draws
from burnish.envs.types import Message, Task
from burnish.inspector.database import Database
from burnish.inspector.own_view import LARGEST_BYTES, POLICY, drawing_for, framed, own_view
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.bundle import write_bundle
from burnish.inspector.stored import StoredEpisode, Which, chosen
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
HOSTILE = "<script>alert(1)</script>"


def episode(messages: tuple[Message, ...] = (), seed: int = 7, **env_data: object) -> StoredEpisode:
    moment = Moment("rft", 1, "train", "sampled")
    return StoredEpisode(moment, "e/0", 0, Task("e", seed), messages, 1, (0.0,), env_data, 1.0, {}, {}, {"predicted": HOSTILE}, None, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("drawn")
    made = recipe(tiny_model(home / "model"), "burnish/QualityInspection-v0", max_turns=3)
    return stored(made, played(made, seeded(2), INSPECTS), home / "runs" / "drawn-1")


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with TestClient(pages(run.parent), base_url="http://127.0.0.1:8266") as client:
        yield client


def test_a_lake_is_drawn_before_each_move() -> None:
    said = (
        Message("user", "Cross the lake from S to G.\nPF\nHG"), Message("assistant", f"right {HOSTILE}"),
        Message("user", "SP\nHG"), Message("assistant", "down"),
    )  # fmt: skip
    drawn = frozen_lake(episode(said)) or ""
    assert drawn.count("<figure>") == 2 and "you at row 1, column 1" in drawn and "you at row 1, column 2" in drawn
    assert "1. right &lt;script&gt;" in drawn and "2. down" in drawn and "<script>" not in drawn
    assert frozen_lake(episode((Message("user", "SFFF"),))) is None


def test_a_part_is_drawn_as_it_is() -> None:
    part = make_part(7, 0)
    first = part.features[0]
    calls = [{"name": "measure", "arguments": {"feature": first.name}, "status": "ok"}, {"name": "measure", "arguments": 3}, "x"]
    drawn = quality_inspection(episode(level=0, tool_calls=calls)) or ""
    assert f"<b>{part.verdict}</b>" in drawn and HOSTILE not in drawn
    assert all(f"{feature.deviation_um:+d} µm: {feature.reason}" in drawn for feature in part.features)
    assert drawn.count("not measured") == len(part.features) - 1
    assert quality_inspection(episode(level=99)) is None and quality_inspection(episode(level="0")) is None


def test_the_page_of_an_episode_shows_it_in_a_frame_where_nothing_runs(client: TestClient, run: Path) -> None:
    found = next(chosen(run, Which()))
    asked = f"phase=rft&step=1&split=train&mode=sampled&episode={found.id}"
    page = client.get(f"/rollouts/drawn-1/episode?{asked}").text
    assert '<iframe class="drawing card" sandbox src="/rollouts/drawn-1/drawing?' in page
    answer = client.get(f"/rollouts/drawn-1/drawing?{asked}")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; ") and "script-src" not in policy and "default-src 'none'" in policy and "'unsafe-inline'" in policy
    assert f"<b>{make_part(found.task.seed, 0).verdict}</b>" in answer.text


def test_what_nothing_draws_has_no_frame(client: TestClient, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    found = next(chosen(run, Which()))
    try:
        (run / "config.json").write_text(json.dumps({**config, "environment": "burnish/Arithmetic-v0"}))
        asked = f"phase=rft&step=1&split=train&mode=sampled&episode={found.id}"
        assert "iframe" not in client.get(f"/rollouts/drawn-1/episode?{asked}").text
        assert client.get(f"/rollouts/drawn-1/drawing?{asked}").status_code == 410
    finally:
        (run / "config.json").write_text(json.dumps(config))


def test_a_bundle_holds_it(run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "bundle", 10, Database())
    drawings = sorted((tmp_path / "bundle").rglob("*.drawing.html"))
    assert len(drawings) == 4 and all("content-security-policy" in file.read_text() for file in drawings)
    assert all('<iframe sandbox srcdoc="' in file.read_text() for file in drawings)
    page = drawings[0].with_name(drawings[0].name.replace(".drawing", ""))
    assert f'sandbox src="../../../runs/drawn-1/{drawings[0].parent.name}/{drawings[0].name}"' in page.read_text()


class Tags(HTMLParser):
    """The tags of a page with their attributes; what stands in an attribute is none."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_drawing_of_a_bundle_leads_nowhere_when_it_is_opened_by_itself() -> None:
    """A policy in the page does not keep it from going elsewhere by itself; a frame without rights does."""
    leads = '<meta http-equiv="refresh" content="0; url=https://h.example/?x=\'1\'"><a href="https://h.example">x</a></iframe><b>'
    view = own_view(lambda _: leads, episode())
    tags = Tags(framed(view)).found
    assert [tag for tag, _ in tags] == ["meta", "meta", "meta", "title", "style", "iframe"]
    assert tags[1][1]["content"] == POLICY and tags[1][1]["http-equiv"] == "content-security-policy"
    assert tags[-1][1]["sandbox"] in ("", None) and tags[-1][1]["srcdoc"] == view and leads in view


@contextmanager
def _forgotten(id: str) -> Iterator[None]:
    """What is registered under this id ends with the block."""
    try:
        yield
    finally:
        DRAWINGS._loaded.pop(id, None)
        DRAWINGS._sources.pop(id, None)


def test_one_of_your_own_is_found_by_the_environments_id_and_by_nothing_else() -> None:
    with _forgotten("test/Drawn-v0"):

        @draws("test/Drawn-v0")
        def render_rollout(episode: DrawnEpisode) -> str:
            return episode.messages[0].text

        assert drawing_for({"environment": "mine.py:test/Drawn-v0"}, "") is render_rollout
        blend = {"environment": "other/Task-v0", "rft": {"blend": [{"environment": "test/Drawn-v0"}]}}
        assert drawing_for(blend, "Drawn-v0") is render_rollout and drawing_for(blend, "") is None
        for other in ({}, {"environment": "os:system"}, {"environment": ["x"]}, {"environment": "test/Drawn-v1"}, {"rft": 3}):
            assert drawing_for(other, "") is None and drawing_for(other, "Drawn-v0") is None


def test_the_one_of_the_page_draws() -> None:
    block = next(text for text in blocks(ROOT / "docs" / "watch-a-run.md", "python") if "render_rollout" in text)
    with _forgotten("my-team/Riddles-v0"):
        exec(compile(block, "watch-a-run.md", "exec"), {"__name__": "riddles"})
        draw = drawing_for({"environment": "my-team/Riddles-v0"}, "")
        assert draw is not None and own_view(draw, episode((Message("user", HOSTILE),))).endswith("&lt;/script&gt;</p><b>1.0</b>")


def test_what_goes_wrong_is_said_where_the_drawing_would_be() -> None:
    def raises(_: DrawnEpisode) -> str:
        raise KeyError(HOSTILE)

    assert "What draws this failed: KeyError" in own_view(raises, episode()) and HOSTILE not in own_view(raises, episode())
    assert "not text, bytes or None" in own_view(lambda _: 3, episode())  # type: ignore[arg-type,return-value]
    assert "no PNG" in own_view(lambda _: b"GET /", episode())
    assert "characters" in own_view(lambda _: "x" * (LARGEST_BYTES + 1), episode())
    assert "Nothing is drawn" in own_view(lambda _: None, episode())
    assert 'src="data:image/png;base64,iVBORw0KGgo' in own_view(lambda _: PNG, episode())
    assert "\ud800" not in own_view(lambda _: "\ud800", episode())
