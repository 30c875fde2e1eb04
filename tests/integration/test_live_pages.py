"""A run under way in a real browser: from Ray's start page to its worst rollout, and every page about it, while it goes on and after."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.integration.started import Started, last_step
from tests.integration.test_pages_browser import WAIT_MS, complaints, fits, keep, served
from tests.integration.test_pages_browser import browser as browser
from tests.integration.test_pages_browser import page as page
from tests.unit.test_inspector_pages import root as root

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
RECIPE = """
name = "live"
model = "{model}"
environment = "burnish/Remote-v0"
environment_args = {{ address = "service:sums" }}
environment_weight = 0.0
reward_function = "tests/digits-v1"
success = "digits"
plugins = ["{plugin}"]

[services.sums]
environment = "burnish/Arithmetic-v0"

[rft]
steps = 100000
groups_per_step = 2
group_size = 4
max_refills = 0
lr = 1e-3
checkpoint_every = 2

[rollout]
max_tokens_per_turn = 8

[engine]
max_context = 128
kv_cache_mb = 32

[evaluation]
tasks = 2

[resources]
object_store_mb = 128
"""


def test_a_run_under_way_is_looked_through_from_rays_start_page(
    page: Page, tiny_model: Path, tmp_path: Path, root: Path, start: Callable[..., Started]
) -> None:
    folder = root / "live-1"
    recipe = tmp_path / "live.toml"
    recipe.write_text(RECIPE.format(model=tiny_model, plugin=HERE / "digit_reward.py"))
    run = start("run", str(recipe), "--run-dir", str(folder))
    run.until(lambda: last_step(folder) >= 3, "third step")
    (dashboard,) = re.findall(r"Ray dashboard: (http://[\d.:]+)\n", run.said)
    assert f"rollouts, once the dashboard has Ray's token: {dashboard}/rollouts/live-1\n" in run.said
    token = subprocess.run(
        [Path(sys.executable).with_name("ray"), "get-auth-token"], capture_output=True, text=True, timeout=120, check=True
    )
    page.goto(dashboard)
    page.locator("input[type=password]").fill(token.stdout.strip())
    page.get_by_role("button", name="Submit").click()
    worst_of_the_last_step(page, page.locator("#burnish-rollouts").click)
    keep(page, "live-episode")
    wanted = (r"/#/actors/[0-9a-f]{32}", r"/#/cluster/nodes/[0-9a-f]{56}", r"/#/logs/\?nodeId=[0-9a-f]{56}")
    to_ray = page.locator("main a[href^='/#/']").all()
    assert [bool(re.fullmatch(one, link.get_attribute("href") or "")) for one, link in zip(wanted, to_ray, strict=True)] == [True] * 3
    what_an_episode_shows(page)
    lists(page, f"{dashboard}/rollouts/live-1")
    every_page(page, f"{dashboard}/rollouts", "live-1")

    page.goto(f"{dashboard}/rollouts")
    page.get_by_role("link", name="Deployments and services").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("sums")
    expect(page.get_by_text("healthy", exact=True)).to_be_visible()
    keep(page, "live-console")

    page.goto(f"{dashboard}/rollouts/live-1")
    expect(page.locator("h1")).to_contain_text("under way")
    reached = last_step(folder)
    expect(page.get_by_role("link", name=re.compile("Worst of the last step"))).to_have_attribute(
        "href", re.compile(rf"step=(?!{reached}\b)\d+"), timeout=WAIT_MS
    )  # the page is drawn anew by itself
    keep(page, "live-run")
    assert complaints(page) == []

    page.goto("about:blank")  # a page that asks for what is new would find nobody
    assert run.end(signal.SIGTERM) == (143, [])
    address = served(folder.parent)
    worst_of_the_last_step(page, lambda: page.goto(address))
    what_an_episode_shows(page)
    every_page(page, address.partition("?")[0], "live-1")
    assert complaints(page) == []


def worst_of_the_last_step(page: Page, enter: Callable[[], object]) -> None:
    """Four clicks with the entry, and what the rollout was given is there to read."""
    enter()
    page.get_by_role("link", name="live-1").click()
    page.get_by_role("link", name=re.compile("Worst of the last step")).click()
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"train-\d+/\d"))
    expect(page.get_by_text(re.compile(r"^reward \d")).first).to_be_visible()


def what_an_episode_shows(page: Page) -> None:
    """Where its time went, its tokens by colour and by key, and its group."""
    bar = page.locator(".timeline svg rect")
    expect(bar.first).to_be_visible()
    assert {"engine", "environment"} <= {word for one in bar.all() for word in re.findall(r"\w+", one.inner_html())}
    assert page.locator(".t.sampled[class*='high-'], .t.sampled[class*='low-']").count() > 0, "no token has a colour"
    page.locator(".tabs").get_by_role("link", name="advantage").click()
    expect(page.locator(".tabs [aria-current]")).to_have_text("advantage")
    page.locator(".tokens").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("status", name="Numbers of the token")).to_have_text(re.compile(r"· id \d+"))
    page.get_by_role("link", name="side by side").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"train-\d+, 4 attempts"))
    expect(page.get_by_role("group", name=re.compile("^What was said in "))).to_have_count(4)
    expect(page.locator(".beside .outcome b")).to_have_count(4)


def lists(page: Page, run: str) -> None:
    """Narrowed, searched and walked by keys alone."""
    page.goto(f"{run}/episodes")
    page.get_by_label("Tasks").select_option("train")
    expect(page.get_by_text("held out,")).to_have_count(0)
    page.get_by_label("Failed").select_option("yes")
    expect(page.get_by_text("Nothing here is like that")).to_be_visible()
    page.get_by_label("Failed").select_option("no")
    expect(page.get_by_role("status")).to_have_text(re.compile(r"\d episodes"))
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("what is")
    page.keyboard.press("Enter")
    expect(page.locator("tr.hit mark").first).to_have_text("What")
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#hit mark").first).to_have_text("What")


def every_page(page: Page, base: str, run: str) -> None:
    """Each is there, says what it is, fits a narrow window in light and dark, and nothing in it fails."""
    first, last = (f"{run}/rft.{step:06}.train.sampled" for step in (1, 3))
    paths = {
        "": "Runs",
        "/-/models": "Models",
        f"/{run}": run,
        f"/{run}/episodes": "pisodes",
        f"/{run}/episodes?phase=rft&step=3&sort=reward": "pisodes",
        f"/-/drift?before={first}&after={last}": "then and now",
        f"/-/compare?run={run}&run=nano-20260101-000000": "2 runs side by side",
    }
    for path, title in paths.items():
        answer = page.goto(base + path)
        assert answer is not None and answer.status == 200, (path, answer)
        expect(page.get_by_role("heading", level=1)).to_contain_text(title)
        page.set_viewport_size({"width": 400, "height": 800})
        for dark in (False, True):
            page.emulate_media(color_scheme="dark" if dark else "light")
            ink = page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
            assert (sum(ink) > 382) == dark and fits(page), (path, dark, ink)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})
