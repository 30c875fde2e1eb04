"""The README's first example is the file examples/first/orders.py, and it works."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from burnish.envs.checks.environment import check_environment, render
from burnish.envs.contract import make_env
from burnish.envs.registry import load_plugin
from burnish.envs.types import Message, Task
from burnish.recipe.load import config_from_data, load_config
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SEED = 3


@pytest.fixture(scope="module")
def orders() -> ModuleType:
    return sys.modules[load_plugin(ROOT / "examples" / "first" / "orders.py")]


def finished(answer: str, tool_calls: float = 1.0) -> RewardInput:
    messages = (Message("user", "Can we ship 2 bolts?"), Message("assistant", answer))
    return RewardInput("t/0", Task("t", SEED), messages, 0.0, {}, {"tool_calls": tool_calls}, {"answer": "yes"})


def test_readme_shows_the_files_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("orders.py", "recipe.toml"):
        assert (ROOT / "examples" / "first" / name).read_text().strip() in readme, f"README.md and examples/first/{name} differ"


def test_the_example_is_under_sixty_lines() -> None:
    assert len((ROOT / "examples" / "first" / "orders.py").read_text().splitlines()) < 60


def test_an_episode_looks_and_answers(orders: ModuleType) -> None:
    env = make_env("first/Orders-v0")
    (prompt,), info = env.reset(seed=SEED)
    item = re.search(r"ship \d+ (\w+)\?", prompt.text)
    assert item is not None
    assert [schema["function"]["name"] for schema in info["tools"]] == ["count"]
    (seen,), reward, terminated, _, _ = env.step(f'count(item="{item[1]}")')
    wanted = int(prompt.text.split()[3])
    assert info["data"]["answer"] == ("yes" if int(seen.text) >= wanted else "no")
    assert (seen.role, reward, terminated) == ("tool", 0.0, False)
    (refused,), _, terminated, _, _ = env.step('count(item="screws")')
    assert "there is no shelf for 'screws'" in refused.text
    assert not terminated
    _, _, terminated, _, last = env.step("yes")
    assert terminated
    assert last["metrics"]["tool_calls"] == 2.0


def test_the_environment_keeps_the_contract(orders: ModuleType) -> None:
    report = check_environment("first/Orders-v0", replies=('count(item="nuts")', 'count(item="screws")', "yes"))
    assert report.passed, render(report)


def test_reward_and_verifier_say_what_they_should(orders: ModuleType) -> None:
    assert asyncio.run(make_scorer("first/brief-v1").score(finished("yes", tool_calls=2.0))).value == pytest.approx(-0.2)
    assert orders.shipped.function(finished(" Yes.")) == Score(1.0, {}, {"expected": "yes", "predicted": "yes"})
    assert orders.shipped.function(finished("no")).value == 0.0


def test_recipes_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    config = load_config("examples/first/recipe.toml")
    assert [scorer.name for scorer in config.scorers] == ["brief", "shipped"]
    for block in re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        config_from_data(tomllib.loads(block), "README.md")
