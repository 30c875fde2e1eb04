"""The pages in a real browser, Debian's Chromium: by themselves over a run folder, and inside Ray's own dashboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from tests.unit.stored_run import tiny_model
from tests.unit.test_inspector_branching import checkpoints, spoken
from tests.unit.test_inspector_bundle import PLACES
from tests.unit.test_inspector_bundle import run as run
from tests.unit.test_inspector_pages import accounted
from tests.unit.test_inspector_pages import root as root

from burnish.hosting.process import ServiceProcess
from burnish.hosting.watched import watched_by_run
from burnish.inspector.console import Health, VersionLine, WatchedPlace, WatchedPlaces
from burnish.inspector.database import USUAL, Database
from burnish.inspector.pages.bundle import write_bundle
from burnish.inspector.pages.serve import behind_dashboard, inspect_forever
from burnish.rpc.local_ray import start_local_ray

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 120_000
expect.set_options(timeout=WAIT_MS)
SHOTS = os.environ.get("BURNISH_SCREENSHOTS")
"""Where the pictures of the pages are kept, of all tests together; where it is not said, each test has them in its own folder."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of a fresh browser, on which nothing may complain."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    opened, complaints = context.new_page(), list[str]()

    def heard(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and re.search(
            "/rollouts|^file:", message.location["url"]
        ):  # Ray's own page complains of its own
            complaints.append(f"{message.location['url']}: {message.text}")

    opened.on("console", heard)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
    opened.__dict__["complaints"] = complaints
    opened.__dict__["pictures"] = Path(SHOTS) if SHOTS else tmp_path / "screenshots"
    yield opened
    context.close()


def complaints(page: Page) -> list[str]:
    found: list[str] = page.__dict__["complaints"]
    return found


def keep(page: Page, name: str) -> None:
    """Keep a picture of all of a page."""
    page.screenshot(path=page.__dict__["pictures"] / f"{name}.png", full_page=True)


def fits(page: Page) -> bool:
    """Whether nothing of a page lies beyond the right edge of its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


WATCHED = WatchedPlaces(
    lambda: [
        WatchedPlace("sums", Health("unreachable", "nobody answers"), "127.0.0.1:1"),
        WatchedPlace(
            "inspector.toml",
            Health("healthy", seconds=0.01),
            "http://127.0.0.1:8000",
            "http://127.0.0.1:8000/metrics",
            (VersionLine("v1", "runs/first", 0.75, 0.0, "2"), VersionLine("v2", "runs/next", 0.25, 0.5, "1 to 4", ("judged",), True)),
        ),
        WatchedPlace("gone.toml", Health("unknown"), problem="gone.toml: there is no such file"),
    ],
    "Made up.",
)
"""A console with all that one can show."""


def served(runs: Path, watched: WatchedPlaces | None = None) -> str:
    """Where `burnish inspect` shows the runs, for as long as this process lasts."""
    said, heard = list[str](), threading.Event()

    def listen(where: str) -> None:
        said.append(where)
        heard.set()

    threading.Thread(target=inspect_forever, args=(runs, 0, listen, USUAL, watched), daemon=True).start()
    assert heard.wait(60)
    return said[0]


@pytest.fixture
def address(root: Path) -> str:
    return served(root, WATCHED)


def test_the_worst_rollout_of_the_last_step_is_four_clicks_away(page: Page, address: str) -> None:
    page.goto(address)
    assert "key=" not in page.url  # it is in a cookie now, and in no link that is passed on
    keep(page, "runs")
    page.get_by_role("link", name="nano-20260101-000000").click()
    keep(page, "run")
    page.get_by_role("link", name=re.compile("Worst of the last step")).click()
    expect(page.get_by_role("status")).to_have_text(re.compile("3 episodes"))
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1/1")
    expect(page.get_by_text("reward 0", exact=True)).to_be_visible()
    expect(page.locator(".outcome .chip").first).to_contain_text("alert(1)")  # the part of the reward, by its name
    expect(page.get_by_text("expected pass, said scrap")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("the bore is too wide"))).to_be_visible()
    keep(page, "episode")
    page.get_by_role("link", name="advantage").click()
    expect(page.locator(".tabs [aria-current]")).to_have_text("advantage")
    page.locator("[data-row] a").first.click()
    expect(page.locator(".t.sampled.high-7")).to_have_count(1)
    assert complaints(page) == []


def test_lists_are_filtered_searched_and_walked_by_keyboard(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="nano-20260101-000000").click()
    page.get_by_role("link", name="All episodes").click()
    page.get_by_label("Failed").select_option("yes")  # chosen is shown at once
    expect(page.get_by_role("status")).to_have_text(re.compile("1 episode$"))
    page.get_by_label("Failed").select_option("")
    expect(page.get_by_role("status")).to_have_text(re.compile("3 episodes"))
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("nobody said this")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing here is like that")).to_be_visible()
    page.get_by_label("Said anywhere").fill("")
    page.get_by_role("button", name="Show").click()
    page.locator("h1").click()
    for _ in range(2):
        page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1/0")
    assert complaints(page) == []


def test_numbers_of_a_token_are_reached_by_pointer_tap_and_keys(page: Page, address: str) -> None:
    page.goto(address)
    at = "/rollouts/nano-20260101-000000/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-1/0"
    page.goto(address.partition("/rollouts")[0] + at)
    numbers, tokens, view = page.get_by_role("status"), page.locator(".tokens .t"), page.locator(".tokens")
    expect(numbers).to_have_text("")
    tokens.nth(2).hover()
    expect(numbers).to_have_text(re.compile(r"· id 2 · sampler logprobs -1 · logprobs -1 · advantages -1 · .* · weights 0$"))
    assert view.evaluate("one => one.querySelectorAll('[tabindex]').length") == 0
    view.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(0)).to_be_focused()
    expect(numbers).to_have_text(re.compile("· id 0$"))
    for _ in range(9):  # at the end it stays
        page.keyboard.press("ArrowRight")
    expect(tokens.nth(3)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(numbers).to_have_text(re.compile(r"· id 2 · sampler logprobs -1 "))
    keep(page, "tokens")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.tokens')") is None, "a stop of the Tab key for all tokens"
    view.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()  # where it was left
    page.keyboard.press("Home")
    expect(tokens.nth(0)).to_be_focused()
    tokens.nth(3).click()
    expect(numbers).to_have_text(re.compile(r"· id 3 · sampler logprobs -6 "))
    tokens.evaluate_all("all => all.forEach((one) => one.after(document.createElement('br')))")
    page.keyboard.press("ArrowUp")
    expect(tokens.nth(2)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(tokens.nth(3)).to_be_focused()
    assert complaints(page) == []


def test_a_list_is_narrowed_by_the_folded_part_of_its_form(page: Page, address: str) -> None:
    page.goto(address)
    page.goto(address.partition("/rollouts")[0] + "/rollouts/nano-20260101-000000/episodes")
    expect(page.get_by_label("Called the tool")).to_be_hidden()
    page.get_by_text("More to choose by").click()
    page.get_by_label("Called the tool").fill("look")
    page.get_by_role("textbox", name="Reward from").fill("0.5")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("[role=status]")).to_have_text(re.compile("1 episode$"))
    expect(page.get_by_text("More to choose by (2 set)")).to_be_visible()
    page.get_by_role("textbox", name="Reward to").fill("0")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("reward: from 0.5 to 0 is no range: the first is above the second")
    expect(page.get_by_label("Called the tool")).to_have_value("look")
    keep(page, "narrowed")
    page.set_viewport_size({"width": 400, "height": 800})
    assert fits(page)
    keep(page, "narrowed-narrow")
    assert [one for one in complaints(page) if "status of 400" not in one] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_window_in_light_and_dark(page: Page, run: Path, address: str, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(address)
    paths = ["/rollouts", "/rollouts/nano-20260101-000000", "/rollouts/nano-20260101-000000/episodes"]
    paths.append("/rollouts/nano-20260101-000000/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-1/0")
    paths.append("/rollouts/nano-20260101-000000/group?phase=rft&step=1&split=train&mode=sampled&task=train-1")
    for number, path in enumerate(paths):
        page.goto(address.partition("/rollouts")[0] + path)
        assert fits(page), path
        for fold in page.locator("main details").all():
            fold.locator("> summary").press("Enter")
        assert fits(page), path
        keep(page, f"narrow-{scheme}-{number}")
    assert complaints(page) == []


def test_what_a_model_wrote_runs_nowhere(page: Page, address: str) -> None:
    page.goto(address)
    page.goto(address.partition("/rollouts")[0] + "/rollouts/nano-20260101-000000/episodes?text=<script>alert(1)</script>")
    page.locator("tbody a").first.click()
    expect(page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    assert page.locator("main script, main img").count() == 0
    assert complaints(page) == []


def test_two_runs_are_ticked_and_compared(page: Page, root: Path, address: str) -> None:
    shutil.copytree(root / "nano-20260101-000000", root / "nano-20260102-000000")
    config = root / "nano-20260102-000000" / "config.json"
    config.write_text('{"name": "<b>nano</b>", "rft": {"lr": 3e-05}}')
    page.goto(address)
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 runs side by side")
    expect(page.get_by_role("cell", name="3e-05")).to_be_visible()
    assert page.locator("svg .line.s0").count() == page.locator("svg .line.s1").count() > 1
    keep(page, "compare")
    page.set_viewport_size({"width": 400, "height": 800})
    assert fits(page)
    keep(page, "compare-narrow")
    assert complaints(page) == []


def test_a_drift_is_found_from_the_run_and_read_side_by_side(page: Page, run: Path, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name=run.name).click()
    page.get_by_role("link", name=re.compile("Which tasks moved")).click()
    expect(page.get_by_text("1 improved, 1 regressed")).to_be_visible()
    keep(page, "drift")
    page.get_by_role("link", name="train-0").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-0, then and now")
    assert page.get_by_role("group", name="Conversation").count() == 2
    keep(page, "drift-task")
    page.set_viewport_size({"width": 400, "height": 800})
    assert fits(page)
    assert complaints(page) == []


def test_a_group_is_read_side_by_side_from_the_list_and_from_one_of_it(page: Page, run: Path, address: str) -> None:
    page.goto(address)
    page.goto(address.partition("/rollouts")[0] + f"/rollouts/{run.name}/episodes?task=train-1&step=1")
    page.get_by_role("link", name="group").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1, 3 attempts")
    said = page.get_by_role("group", name="What was said in train-1/")
    expect(said).to_have_count(3)
    assert len({box["y"] for one in page.locator(".beside > section").all() if (box := one.bounding_box())}) == 1, "not side by side"
    expect(page.get_by_text("advantage +0.500")).to_be_visible()
    keep(page, "group")
    page.set_viewport_size({"width": 400, "height": 800})
    page.get_by_text("What all of them were given").click()
    assert fits(page)
    keep(page, "group-narrow")
    for _ in range(2):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1/1")
    page.get_by_role("link", name="side by side").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1, 3 attempts")
    assert complaints(page) == []


def test_the_time_of_an_episode_is_one_bar_and_its_command_is_made_for_a_turn_that_is_chosen(page: Page, run: Path, address: str) -> None:
    spoken(run)
    checkpoints(run, "rft-2", "rft-4")
    page.goto(address)
    at = "episode?phase=rft&step=4&split=train&mode=sampled&episode=train-7/0"
    page.goto(f"{address.partition('/rollouts')[0]}/rollouts/{run.name}/{at}")
    bar = page.locator(".timeline svg rect")
    expect(bar).to_have_count(6)  # of each of three turns, what the engine and what the environment took
    widths = [one.bounding_box() for one in bar.all()]
    assert [round(two["width"] / one["width"]) for one, two in zip(widths[::2], widths[1::2], strict=True) if one and two] == [2, 2, 2]
    assert "turn 2: 0.250 s" in bar.nth(2).inner_html()
    expect(page.locator(".timeline .legend")).to_have_text(re.compile(r"engine 0\.750 s\s*environment and tools 1\.500 s"))
    page.get_by_text("Continue it from one of its turns").click()
    command = page.locator("#branch pre")
    expect(command).to_have_text(re.compile(r"--turn 3 -n 8 -- \S+ train-7/0$"))
    page.get_by_label("First turn said anew").fill("2")
    page.keyboard.press("Enter")
    expect(command).to_have_text(re.compile("--turn 2 -n 8 -- "))
    page.get_by_label("Who speaks").select_option("rft-2")  # chosen is shown at once
    expect(command).to_have_text(re.compile(r"--turn 2 -n 8 --model=\S+/checkpoints/rft-2 -- "))
    assert page.url.endswith("#branch")
    keep(page, "branch")
    page.set_viewport_size({"width": 400, "height": 800})
    assert fits(page)
    keep(page, "branch-narrow")
    assert complaints(page) == []


def test_a_bundle_is_read_from_files_alone(page: Page, run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "bundle", 100, Database())
    page.goto((tmp_path / "bundle" / "index.html").as_uri())
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1280px"  # the policy lets the style in
    page.get_by_role("link", name=run.name).click()
    keep(page, "bundle-run")
    page.get_by_role("link", name="All episodes").click()
    page.get_by_label("Narrow to").fill("held 2")  # and the script
    expect(page.locator("[data-row]:visible")).to_have_count(1)
    keep(page, "bundle-steps")
    page.locator("[data-row]:visible a").click()
    expect(page.get_by_role("status")).to_have_text("6 episodes")
    page.get_by_label("Narrow to").fill("train-1/1")
    expect(page.locator("[data-row]:visible")).to_have_count(1)
    keep(page, "bundle-table")
    page.get_by_role("link", name="group").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1, 2 attempts")
    page.get_by_role("link", name="train-1/1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("train-1/1")
    assert page.locator(".t.sampled").count() == 2 and page.locator("main script, main img").count() == 0
    keep(page, "bundle-episode")
    page.go_back()
    page.go_back()
    expect(page.get_by_label("Narrow to")).to_have_value("train-1/1")
    expect(page.locator("[data-row]:visible")).to_have_count(1)
    page.get_by_role("link", name=run.name).click()
    page.get_by_role("link", name=re.compile("Which tasks moved")).click()
    expect(page.get_by_text("1 improved, 1 regressed")).to_be_visible()
    assert complaints(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_on_any_page(page: Page, run: Path, root: Path, address: str, tmp_path: Path, scheme: Any) -> None:
    axe = axe_core()
    page.set_content("<main><img src='x'></main>")
    assert "image-alt" in [one.partition(":")[0] for one in serious_faults(page, axe)], "axe finds nothing at all"
    blended(run)
    spoken(run)
    checkpoints(run, "rft-2", "rft-4")
    shutil.copytree(tiny_model(tmp_path / "model"), run / "checkpoints" / "rft-2" / "model", dirs_exist_ok=True)
    shutil.copytree(run, root / "nano-20260102-000000")
    write_bundle(run, tmp_path / "bundle", 100, Database())
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    at, home = address.partition("/rollouts")[0], f"/rollouts/{run.name}"
    drift = f"/rollouts/-/drift?before={PLACES[0]}&after={PLACES[1]}"
    moment = "phase=rft&step=1&split=train&mode=sampled"
    paths = [
        "/rollouts",
        home,
        f"{home}/episodes",
        f"{home}/episodes?order=worst&text=alert",
        f"{home}/episodes?task=train-1&reward_from=0",
        f"{home}/episodes?reward_from=much",
        f"{home}/episode?{moment}&episode=train-1/0",
    ]
    paths += [f"{home}/episode?{moment}&episode=train-1/0&colour=advantage", f"{home}/episode?{moment}&episode=train-1/2", drift]
    paths += [f"{home}/group?{moment}&task=train-1", "/rollouts/-/models", "/rollouts/-/console"]
    paths += [f"{home}/episode?{moment.replace('step=1', 'step=4')}&episode=train-7/0&turn=2&checkpoint=rft-4"]
    paths += [f"{drift}&task=train-0", f"/rollouts/-/compare?run={run.name}&run=nano-20260102-000000", "/rollouts/none"]
    bundled = sorted((tmp_path / "bundle").rglob("*.html"))
    found = {}
    for one in [*(at + path for path in paths), *(file.as_uri() for file in bundled)]:
        page.goto(one)
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        if one == at + home:
            for title in ("Alarms", "Where the time went", "Samples and weights", "Blend", "Checkpoints"):
                expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        found[one] = serious_faults(page, axe)
    assert {address: faults for address, faults in found.items() if faults} == {}


def blended(run: Path) -> None:
    """A run that says what it blended, and how old and how far off what it was trained on was."""
    (run / "config.json").write_text('{"name": "nano", "rft": {"blend": [{"name": "sums", "environment": "a/b-v0", "percent": 25}]}}')
    more = {"learner/staleness_mean": 1.5, "learner/mismatch_kl": 2e-7, "groups_sampled": 4.0, "blend/sums": 0.5}
    accounted(run, 2, (3.0, 1.0, 0.5, 1.5), **more)


def axe_core() -> str:
    """The script of axe-core, out of a package that carries it."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed: make browser")
    return (Path(str(package.__file__)).parent / "axe.min.js").read_text()


def serious_faults(page: Page, axe: str) -> list[str]:
    """What axe-core holds against a page, of those faults that keep somebody from using it. Its script comes in beside the policy."""
    page.evaluate(axe)
    results: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [one for one in results["violations"] if one["impact"] in {"serious", "critical"}]
    return [f"{one['id']}: {', '.join(node['html'][:120] for node in one['nodes'][:3])}" for one in serious]


@pytest.fixture
def dashboard(root: Path, tmp_path: Path) -> Iterator[str]:
    with (
        ServiceProcess("environment", "burnish/Arithmetic-v0", tmp_path / "log") as service,
        behind_dashboard(root, watched_by_run({"sums": service.address}, ())) as pages,
    ):
        started = start_local_ray(
            num_cpus=1, include_dashboard=True, log_to_driver=False, object_store_memory=100 * 1024 * 1024, proxy_server_url=pages
        )
        try:
            yield f"http://{started.dashboard_url}"
        finally:
            ray.shutdown()


def test_rays_dashboard_has_an_entry_that_leads_to_the_rollouts_and_asks_for_its_token(page: Page, dashboard: str) -> None:
    answer = page.request.get(f"{dashboard}/rollouts", timeout=WAIT_MS)
    assert answer.status == 401  # nothing is shown to who has no token
    page.goto(dashboard)
    asked = subprocess.run(
        [Path(sys.executable).with_name("ray"), "get-auth-token"], capture_output=True, text=True, timeout=120, check=True
    )
    page.locator("input[type=password]").fill(asked.stdout.strip())
    page.get_by_role("button", name="Submit").click()
    entry = page.locator("#burnish-rollouts")
    expect(entry).to_have_text("Rollouts")
    expect(page.get_by_role("link", name="Actors")).to_be_visible()  # Ray's own navigation is whole
    keep(page, "ray-dashboard")
    entry.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
    page.get_by_role("link", name="Deployments and services").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("sums")
    expect(page.get_by_text("healthy", exact=True)).to_be_visible()
    keep(page, "ray-dashboard-console")
    page.goto(f"{dashboard}/rollouts")
    page.get_by_role("link", name="nano-20260101-000000").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("nano-20260101-000000")
    assert complaints(page) == []
    another_site_leads_nowhere(page, f"{dashboard}/rollouts")


def another_site_leads_nowhere(page: Page, rollouts: str) -> None:
    """A browser that has Ray's token does not give it when another site sends it there, by a link or by a form."""
    forms = (f"<form method={how} action='{rollouts}'><button>{how}</button></form>" for how in ("get", "post"))
    body = f"<a href='{rollouts}'>link</a>{''.join(forms)}"
    page.context.route("http://another.example/", lambda route: route.fulfill(body=body, content_type="text/html"))
    for what in ("link", "get", "post"):
        page.goto("http://another.example/")
        with page.expect_response(lambda answer: answer.url.rstrip("?") == rollouts) as sent:
            page.get_by_text(what, exact=True).click()
        assert sent.value.status == 401, what
    own = page.goto(rollouts)
    assert own is not None and own.status == 200  # it had the token all along
