"""What environments draw, what a search found, and the console, in a real browser: whole, quiet, narrow, dark, and usable by everybody."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.integration.test_pages_browser import axe_core, complaints, keep, serious_faults
from tests.integration.test_pages_browser import browser as browser
from tests.integration.test_pages_browser import page as page
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model
from tests.unit.test_inspector_console import deployment_file, gateway

from burnish.envs.builtin.inspection.parts import make_part
from burnish.envs.drawing import DRAWINGS, DrawnEpisode
from burnish.hosting.watched import watched_places
from burnish.inspector.console import WatchedPlaces
from burnish.inspector.pages.serve import inspect_forever

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MOVES = ["right", "down", "left"]
MOMENT = "phase=rft&step=1&split=train&mode=sampled&episode=train-0/0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of inspections, and one on the lake."""
    home = tmp_path_factory.mktemp("drawn")
    model = tiny_model(home / "model")

    def play() -> None:
        for name, environment, answers in (("parts-1", "QualityInspection-v0", INSPECTS), ("lake-1", "FrozenLake-v0", MOVES)):
            made = recipe(model, f"burnish/{environment}", max_turns=3)
            stored(made, played(made, seeded(3), answers), home / "runs" / name)

    with ThreadPoolExecutor(1) as beside:  # a browser that has been started runs a loop in this thread
        beside.submit(play).result(120)
    return home / "runs"


def started(root: Path, watched: WatchedPlaces | None = None) -> str:
    """The address of pages over some runs."""
    said, heard = list[str](), threading.Event()

    def listen(where: str) -> None:
        said.append(where)
        heard.set()

    threading.Thread(target=inspect_forever, args=(root, 0, listen), kwargs={"watched": watched}, daemon=True).start()
    assert heard.wait(60)
    return said[0]


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gateway() as (port, _), gateway(503) as (other, _):
        file = deployment_file(tmp_path_factory.mktemp("deployed"), port)
        yield started(runs, watched_places([file], [f"http://127.0.0.1:{other}"]))


def at(address: str) -> str:
    return address.partition("/rollouts")[0]


def test_a_part_is_found_by_what_was_said_of_it_and_seen_as_it_is(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="parts-1").click()
    page.get_by_role("link", name="All episodes").click()
    page.get_by_label("Said anywhere").fill("shaft")
    page.get_by_label("Said anywhere").press("Enter")
    expect(page.locator("tr.hit mark").first).to_have_text(re.compile("shaft", re.IGNORECASE))
    keep(page, "hits")
    page.locator("[data-row] a").first.click()
    expect(page.locator(".conversation mark").first).to_be_in_viewport()
    keep(page, "hit")
    drawing = page.frame_locator("iframe.drawing")
    page.locator("iframe.drawing").scroll_into_view_if_needed()
    seed = 1000 + int(re.findall(r"train-(\d+)/", page.locator("h1").inner_text())[0])
    expect(drawing.locator("b").first).to_have_text(make_part(seed, 0).verdict)
    expect(drawing.locator("svg").first).to_be_visible()
    whole, words = (drawing.locator(what).last.bounding_box() for what in ("svg", "svg text"))
    assert whole and words and words["x"] + words["width"] <= whole["x"] + whole["width"], "what stands beside the scale is cut off"
    keep(page, "drawn-part")
    assert complaints(page) == []


def test_a_lake_is_drawn_before_each_move(page: Page, address: str) -> None:
    page.goto(address)
    page.goto(f"{at(address)}/rollouts/lake-1/episode?{MOMENT}")
    page.locator("iframe.drawing").scroll_into_view_if_needed()
    expect(page.frame_locator("iframe.drawing").locator("figure").first).to_be_visible()
    keep(page, "drawn-lake")
    assert complaints(page) == []


def test_a_script_in_a_drawing_never_runs_and_nothing_is_fetched_for_it(page: Page, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway() as (port, reached):

        def hostile(episode: DrawnEpisode) -> str:
            away = f"http://127.0.0.1:{port}/x"
            leads = f"<script>alert(1)</script><img src={away} onerror=alert(2)><form action={away}><button>go</button></form>"
            return f"{leads}<a href={away} target=_top>away</a><p>drawn</p>"

        monkeypatch.setitem(DRAWINGS._loaded, "burnish/FrozenLake-v0", hostile)
        address = started(runs)
        page.goto(address)
        page.goto(f"{at(address)}/rollouts/lake-1/episode?{MOMENT}")
        page.locator("iframe.drawing").scroll_into_view_if_needed()
        frame = page.frame_locator("iframe.drawing")
        expect(frame.get_by_text("drawn")).to_be_visible()
        frame.get_by_text("away").click()
        frame.get_by_text("go").click()
        page.wait_for_timeout(1000)
    assert page.url.startswith(at(address)) and not [one for one in complaints(page) if "dialog" in one]
    assert reached == [], "a policy keeps everything in"


def test_the_console_shows_what_answers_and_what_does_not(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="Deployments and services").click()
    expect(page.get_by_text("healthy", exact=True)).to_be_visible()
    expect(page.get_by_text("/health answered 503")).to_be_visible()
    expect(page.get_by_role("cell", name="inspector:v1")).to_be_visible()
    keep(page, "console")
    page.wait_for_timeout(6000)  # it is drawn anew
    expect(page.get_by_text("unhealthy", exact=True)).to_be_visible()
    assert complaints(page) == []


def shown(address: str) -> list[str]:
    paths = ["parts-1/episodes?text=shaft", f"parts-1/episode?{MOMENT}", f"parts-1/episode?{MOMENT}&text=part", f"lake-1/episode?{MOMENT}"]
    return [f"{at(address)}/rollouts/{path}" for path in (*paths, "-/console")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_they_fit_a_narrow_window_and_axe_finds_no_serious_fault(page: Page, address: str, scheme: Any) -> None:
    axe, faults = axe_core(), dict[str, list[str]]()
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    for number, one in enumerate(shown(address)):
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(one)
            faults[f"{one} {width}"] = serious_faults(page, axe)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, one
        keep(page, f"drawn-narrow-{scheme}-{number}")
    assert complaints(page) == []
    for run in ("parts-1", "lake-1"):  # axe does not look into a frame where nothing runs
        view = page.request.get(f"{at(address)}/rollouts/{run}/drawing?{MOMENT}").text()
        page.set_content(view.replace("<!doctype html>", '<!doctype html><html lang="en">'))
        faults[f"drawing of {run}"] = serious_faults(page, axe)
    assert {where: what for where, what in faults.items() if what} == {}
