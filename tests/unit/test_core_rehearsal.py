"""The rehearsal: what only shows when environment, rewards, services and chat template meet is known before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.paper_model import write_paper_model

from burnish import RewardInput, Score
from burnish.recipe.load import config_from_data
from burnish.recipe.rehearsal import rehearse
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.session import try_parts
from burnish.testing import mock_verifier

PLUGIN = """
import gymnasium, time
from burnish import Message, reward
from burnish.envs import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText

class Asks(gymnasium.Env):
    observation_space, action_space = MessagesSpace(), UnicodeText()
    def __init__(self, words=3, turns=1, sleep_s=0.0, breaks=False, declares=False):
        self.words, self.turns, self.sleep_s, self.breaks = words, turns, sleep_s, breaks
        if declares:
            self.reward_parts = ("won",)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (Message("user", "part " * self.words),), {}
    def step(self, action):
        time.sleep(self.sleep_s)
        self.turns -= 1
        if self.breaks:
            raise OSError("the gauge is broken")
        if self.turns:
            return (Message("user", "part"),), 0.0, False, False, {}
        return (), 2.0, True, False, {"reward_parts": {"won": float(action.strip() == "yes")}}

register_env("rehearsal-test/Asks-v0", Asks)

@reward("rehearsal-test/rank-v1", level="group", min_members=3)
def rank(episodes):
    return [float(len(episodes))] * len(episodes)

@reward("rehearsal-test/picky-v1")
def picky(episode):
    return episode.data["answer"] == 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: a plug-in is loaded once."""
    folder = tmp_path_factory.mktemp("rehearsal")
    write_paper_model(folder / "models" / "tiny")
    (folder / "asks.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def recipe(**more: Any) -> ResolvedRun:
    given: dict[str, Any] = {"name": "r", "model": "tiny", "environment": "rehearsal-test/Asks-v0", "plugins": ["asks.py"]}
    given |= {
        "success": "env.won",
        "rollout": {"retries": 0, "max_turns": more.pop("max_turns", 1), "max_tokens_per_turn": 40},
        "engine": {"max_context": 128},
    }
    given["multi_turn_rollouts"] = given["rollout"]["max_turns"] > 1
    return resolve(config_from_data({**given, **more}))


def args(**given: Any) -> dict[str, Any]:
    return {"environment_args": given}


def test_an_episode_is_played_to_its_end_and_judged(folder: Path) -> None:
    seen = rehearse(recipe(max_turns=4, rollout={"retries": 0, "max_turns": 4, "max_tokens_per_turn": 5}, **args(turns=3)), {})
    # <s> user part part part <e> <s> assistant: the newline after <e> is no word
    assert seen.line == "rehearsed task heldout-1000000000: prompt 8 tokens, 3 turns, reward 2 (env 2, env.won 1)"
    assert seen.notes == ()


def test_what_would_fit_badly_is_said(folder: Path) -> None:
    seen = rehearse(recipe(**args(words=100)), {})
    (note,) = seen.notes
    assert note.startswith("a prompt of 105 tokens and 1 x 40 sampled ones are more than engine.max_context = 128: an episode that says")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (args(words=200), "has 205 tokens, engine.max_context is 128; raise it or shorten the prompt"),
        (
            {"success": "env"},
            "success: reward part 'env' of episode heldout-1000000000/0 is 2.0; a part that counts as success lies between",
        ),
        (
            {"success": "env.wno"},
            "success: the episode has no reward part 'env.wno'; did you mean 'env.won'?",
        ),
        ({"max_turns": 2, **args(turns=9)}, "success: the episode has no reward part 'env.won'"),
        (args(breaks=True), "env_error in rehearsal-test/Asks-v0: OSError: the gauge is broken"),
        (
            {"reward_function": "rehearsal-test/picky-v1"},
            "the rehearsal of one episode failed: reward_error in rehearsal-test/picky-v1: task heldout-1000000000: KeyError: 'answer'",
        ),
        ({"rollout": {"retries": 0, "step_timeout_s": 0.2}, **args(sleep_s=3600)}, "env_timeout in rehearsal-test/Asks-v0 step: no answer"),
    ],
)
def test_what_does_not_fit_is_named_before_a_model_is_loaded(folder: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        rehearse(recipe(**more), {})
    assert says in str(caught.value)


def test_a_part_that_is_declared_is_0_where_a_limit_cut_the_episode_short(folder: Path) -> None:
    seen = rehearse(recipe(max_turns=2, **args(turns=9, declares=True)), {})
    assert seen.parts["env.won"] == 0.0 and seen.turns == 2


def test_an_environment_that_never_ends_is_left_after_some_turns(folder: Path) -> None:
    more = {"rollout": {"retries": 0, "max_turns": 100, "max_tokens_per_turn": 1}, **args(turns=1000, declares=True)}
    assert rehearse(recipe(max_turns=100, **more), {}).turns == 8


def test_a_verifier_is_asked_once_and_what_it_leaves_out_is_named(folder: Path) -> None:
    asked = list[RewardInput]()

    def judge(episode: RewardInput) -> Score:
        asked.append(episode)
        return Score(0.5, parts={"right": 1.0})

    with mock_verifier(judge, "verdicts.example:50051"):
        run = recipe(success="v.right", rewards=[{"name": "v", "verifier": "verdicts.example:50051"}])
        assert rehearse(run, {}).line.endswith("reward 2.5 (env 2, env.won 1, v 0.5, v.right 1)")
        with pytest.raises(
            ValueError, match=r"the episode has no reward part 'v\.correct'.* What gives it must give it with every episode"
        ):
            rehearse(recipe(success="v.correct", rewards=[{"name": "v", "verifier": "verdicts.example:50051"}]), {})
    assert [str(episode.answer).strip() for episode in asked] == ["yes", "yes"]


def test_rewards_that_compare_get_as_many_attempts_as_they_need(folder: Path) -> None:
    run = recipe(reward_function="rehearsal-test/rank-v1")
    assert rehearse(run, {}).parts["rank"] == 3.0


def test_of_files_the_longest_prompt_is_played_to_which_the_environment_adds(folder: Path) -> None:
    for name, words in (("train", (2, 90)), ("held_out", (1, 3))):
        rows = [f'{{"id": "{name}-{n}", "messages": [{{"role": "user", "content": "{"part " * n}"}}]}}' for n in words]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
    files = {"train": "train.jsonl", "held_out": "held_out.jsonl"}
    assert rehearse(recipe(tasks=files), {}).task == "train-90"
    with pytest.raises(ValueError, match=r"the prompt of task train-90/0 has 132 tokens"):
        rehearse(recipe(tasks=files, **args(words=34)), {})


def test_what_only_the_cluster_knows_is_not_rehearsed(folder: Path) -> None:
    said = list[str]()
    more = {"rewards": [{"verifier": "service:v"}], "services": {"v": {"address": "ray:verdicts"}}}
    try_parts(recipe(**more, resources={"ray_address": "auto"}), said.append)
    assert said == ["not rehearsed: ray:verdicts is looked up once the run belongs to the cluster, and an episode is rehearsed then"]
