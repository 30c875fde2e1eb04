"""`burnish regrade`: stored episodes under another reward, and what training would have made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task
from burnish.inspector.regrade import ranks, reward_input, spearman
from burnish.inspector.stored import Which, chosen
from burnish.rewards.types import RewardInput, Score
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.testing import mock_verifier

pytestmark = pytest.mark.unit

PLUGIN = """
from burnish import reward

@reward("regrade-test/said-v1")
def said(episode, *, times: float = 1.0):
    if episode.answer == "broken":
        raise ValueError("cannot be read")
    return times * float(episode.answer)

@reward("regrade-test/place-v1", level="group", min_members=2)
def place(episodes):
    return [float(sorted(e.answer for e in episodes).index(e.answer)) for e in episodes]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: a plug-in is loaded once."""
    folder = tmp_path_factory.mktemp("regrade")
    (folder / "said.py").write_text(PLUGIN)
    tiny_model(folder / "tiny")
    return folder


def group(number: int, *attempts: tuple[str, float | None]) -> EpisodeGroup:
    """Attempts that said something and were worth something, None for one that failed."""
    task = Task(f"train-{number}", number)
    failed = Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged")
    episodes = [
        Episode(task, i, (), (Message("user", "?"), Message("assistant", said)), failed if was is None else Reward(was, {"env": was}))
        for i, (said, was) in enumerate(attempts)
    ]
    return EpisodeGroup(task, tuple(episodes))


@pytest.fixture
def graded(made: Path, tmp_path: Path) -> Path:
    """Four groups: the new reward agrees in the first, is the other way round in the second, and teaches nothing in the third."""
    groups = [
        group(0, ("1", 1.0), ("0", 0.0)),
        group(1, ("0", 1.0), ("1", 0.0)),
        group(2, ("1", 1.0), ("1", 0.0)),
        group(3, ("5", 1.0), ("0", None)),
    ]
    return stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")


def burnish(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def regrade(run: Path, made: Path, *more: str | Path) -> Result:
    return burnish("regrade", run, "--reward", "regrade-test/said-v1", "--plugin", made / "said.py", *more)


def test_what_two_rewards_say_of_the_same_episodes(graded: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = regrade(graded, made, "--json", "--out", out)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["episodes"], found["failed"], found["left_out"]) == (7, 0, {"failed": 1})
    assert (found["groups"], found["both_teach"], found["flipped"]) == (3, 2, 1)
    assert found["was"] == {"mean": 4 / 7, "deviation": pytest.approx(np.std([1, 0, 1, 0, 1, 0, 1])), "teaching": 3}
    assert found["now"] == {"mean": 9 / 7, "deviation": pytest.approx(np.std([1, 0, 0, 1, 1, 1, 5])), "teaching": 2}
    # was: 1 0 1 0 1 0 1 -> 5.5 2 5.5 2 5.5 2 5.5; now: 1 0 0 1 1 1 5 -> 4.5 1.5 1.5 4.5 4.5 4.5 7
    was, now = np.array([5.5, 2, 5.5, 2, 5.5, 2, 5.5]), np.array([4.5, 1.5, 1.5, 4.5, 4.5, 4.5, 7])
    assert found["correlation"] == pytest.approx(np.corrcoef(was, now)[0, 1])
    first = found["disagreements"][0]
    assert (first["episode"], first["was"], first["now"], first["apart"]) == ("train-1/0", 1.0, 0.0, pytest.approx(4 / 6))
    assert first["page"] == "/rollouts/run/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-1%2F0"
    attempts = [{"episode": "train-1/0", "was": 1.0, "now": 0.0}, {"episode": "train-1/1", "was": 0.0, "now": 1.0}]
    assert found["flipped_groups"] == [{"phase": "rft", "step": 1, "task": "train-1", "attempts": attempts}]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["now"] for row in rows] == [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 5.0]
    assert [(row["task"], row["step"]) for row in rows if row["flipped"]] == [("train-1", 1)] * 2


def test_what_the_terminal_says(graded: Path, made: Path) -> None:
    lines = regrade(graded, made, "--limit", "1").output.splitlines()
    assert lines == [
        "7 episodes scored again, compared with the total (left out: 1 failed)",
        "rank correlation    +0.242 (Spearman)",
        "training saw        mean 0.5714, deviation 0.4949, 3 of 3 groups teach",
        "would have seen     mean 1.286, deviation 1.578, 2 of 3 groups teach",
        "flipped             an advantage has the other sign in 1 of 2 groups that teach under both (50.0%)",
        "  rft step 1, train-1",
        "largest disagreements",
        "  rft step 1, train-1/0  was 1        now 0        67% apart",
    ]


def test_the_first_of_many_flipped_groups_are_named_and_only_attempts_that_flipped(made: Path, tmp_path: Path) -> None:
    """The third attempt stands at the mean of its group before, and above it after: that is no other sign."""
    groups = [group(i, ("0", 1.0), ("1", 0.0), ("2", 0.5)) for i in range(7)]
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")
    found = json.loads(regrade(run, made, "--json").output)
    assert [one["task"] for one in found["flipped_groups"]] == [f"train-{i}" for i in range(7)] and found["flipped"] == 7
    assert [one["episode"] for one in found["flipped_groups"][6]["attempts"]] == ["train-6/0"]
    said = regrade(run, made).output.splitlines()
    assert said[5:11] == [*(f"  rft step 1, train-{i}" for i in range(5)), "  and 2 more, which --json names"]


def test_only_what_training_sampled_had_advantages(made: Path, tmp_path: Path) -> None:
    """Groups of training agree, those of evaluations and of before the first phase are the other way round."""
    agree, turned = (("1", 1.0), ("0", 0.0)), (("1", 0.0), ("0", 1.0))
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), [group(i, *agree) for i in range(4)], tmp_path / "run")
    rest = [Moment("base", 0, "heldout", "sampled"), Moment("rft", 1, "heldout", "sampled"), Moment("rft", 1, "heldout", "greedy")]
    with EpisodeStore(run / "episodes", "run") as store:
        for moment in [*rest, Moment("base", 0, "train", "sampled")]:  # the last is what a probe keeps
            store.put(moment, [one for i in range(2) for one in group(i, *turned).episodes])
    found = json.loads(regrade(run, made, "--json").output)
    assert (found["episodes"], found["trained"], found["correlation"]) == (24, 8, pytest.approx(-1 / 3))
    assert (found["groups"], found["both_teach"], found["flipped"]) == (4, 4, 0)
    assert found["was"] == found["now"] == {"mean": 0.5, "deviation": 0.5, "teaching": 4} and len(found["disagreements"]) == 10
    said = regrade(run, made, "--limit", "0").output.splitlines()
    assert said[0] == "24 episodes scored again, 8 of them of training, compared with the total"
    assert said[4] == "flipped             an advantage has the other sign in 0 of 4 groups that teach under both (0.0%)"
    none = json.loads(regrade(run, made, "--json", "--split", "heldout").output)
    assert (none["episodes"], none["trained"], none["was"], none["now"], none["flipped"]) == (12, 0, None, None, 0)
    assert regrade(run, made, "--split", "heldout", "--limit", "0").output.splitlines() == [
        "12 episodes scored again, 0 of them of training, compared with the total",
        "rank correlation    -1.000 (Spearman)",
        "training saw        none of these episodes",
    ]


def test_a_scale_changes_no_order(graded: Path, made: Path) -> None:
    one, other = (json.loads(regrade(graded, made, "--json", "--arg", f"times={times}").output) for times in (1.0, 0.01))
    assert one["correlation"] == other["correlation"] and one["flipped"] == other["flipped"]
    turned = json.loads(regrade(graded, made, "--json", "--arg", "times=-1.0").output)
    assert turned["correlation"] == pytest.approx(-one["correlation"])


def test_rewards_that_training_takes_for_equal_teach_nothing_here_either(made: Path, tmp_path: Path) -> None:
    """Of the first reward in group 0, and of the other in group 1, where nothing else stands above what is within rounding of it."""
    groups = [group(0, ("1", 1.0), ("0", 1.00001)), group(1, ("1", 0.0), ("1.00001", 1.0)), group(2, ("0", 0.0), ("1", 1.0))]
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")
    found = json.loads(regrade(run, made, "--json").output)
    assert (found["was"]["teaching"], found["now"]["teaching"], found["both_teach"], found["flipped"]) == (2, 2, 1, 0)


def test_an_episode_that_cannot_be_scored_is_named_and_no_number(made: Path, tmp_path: Path) -> None:
    groups = [group(0, ("1", 1.0), ("broken", 0.0), ("0", 0.0))]
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")
    done = regrade(run, made)
    assert done.exit_code == 1
    assert done.output.splitlines()[0] == "2 episodes scored again, compared with the total (left out: 1 could not be scored)"
    assert "1 could not be scored, the first: rft step 1, train-0/1: reward_error in regrade-test/said-v1" in done.output


def test_a_reward_that_compares_attempts_gets_whole_groups(graded: Path, made: Path) -> None:
    done = burnish("regrade", graded, "--reward", "regrade-test/place-v1", "--plugin", made / "said.py", "--json")
    found = json.loads(done.output)
    assert (found["episodes"], found["left_out"]) == (6, {"failed": 1, "too few attempts to compare": 1})
    assert found["flipped"] == 1


def test_the_reward_of_the_run_itself_gives_what_it_gave(made: Path, tmp_path: Path) -> None:
    cost = {"reward_function": ["burnish/inspection-cost-v1"], "max_turns": 6}
    run = recipe(made / "tiny", "burnish/QualityInspection-v0", **cost)
    folder = stored(run, played(run, seeded(20), INSPECTS), tmp_path / "run")
    cost_again = ["--reward", "burnish/inspection-cost-v1", "--against", "inspection-cost", "--json"]
    found = json.loads(burnish("regrade", folder, *cost_again).output)
    assert (found["episodes"], found["correlation"], found["flipped"], found["disagreements"]) == (40, pytest.approx(1.0), 0, [])
    assert found["was"] == found["now"] and found["was"]["deviation"] > 0
    (tmp_path / "r.toml").write_text(
        f'name = "r"\nmodel = "{made / "tiny"}"\nenvironment = "burnish/QualityInspection-v0"\n'
        'reward_function = "burnish/inspection-cost-v1"\nmulti_turn_rollouts = true\n'
    )
    whole = json.loads(burnish("regrade", folder, "--recipe", tmp_path / "r.toml", "--json").output)
    assert whole["was"] == whole["now"]
    (folder / "recipe.toml").write_text('name = "r"\nmodel = "none"\n')  # the file as it was given, before --set
    assert json.loads(burnish("regrade", folder, "--json").output) == whole


def test_each_environment_of_a_blend_is_scored_by_its_own_rewards(made: Path, tmp_path: Path) -> None:
    """The recipe's reward is not of what it blends, where the environment's own is the total; what it does not blend is left out."""

    def of(environment: str, number: int, *attempts: tuple[str, float]) -> EpisodeGroup:
        one = group(number, *attempts)
        task = replace(one.task, environment=environment)
        return EpisodeGroup(task, tuple(replace(episode, task=task) for episode in one.episodes))

    groups = [of("", 0, ("1", 1.0), ("0", 0.0)), of("sums", 1, ("7", 0.25), ("5", 0.5)), of("gone", 2, ("1", 1.0), ("0", 0.0))]
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")
    (tmp_path / "r.toml").write_text(
        f'name = "r"\nmodel = "{made / "tiny"}"\nenvironment = "burnish/Arithmetic-v0"\nenvironment_weight = 0.0\n'
        'rewards = [{ use = "regrade-test/said-v1" }]\nplugins = ["%s"]\n'
        % (made / "said.py")
        + '[[rft.blend]]\nname = "sums"\nenvironment = "burnish/Arithmetic-v0"\npercent = 50\n'
    )
    done = burnish("regrade", run, "--recipe", tmp_path / "r.toml", "--json", "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["left_out"] == {"of environment gone, which the recipe does not blend": 2}
    assert [json.loads(line)["now"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1.0, 0.0, 0.25, 0.5]
    again = burnish("regrade", run, "--recipe", tmp_path / "r.toml", "--out", tmp_path / "out.jsonl")
    assert again.exit_code == 2 and "out.jsonl is there already, and results are never overwritten" in again.stderr


def test_the_penalty_for_length_is_of_no_reward_and_a_constant_disagrees_with_nothing(made: Path, tmp_path: Path) -> None:
    long = Reward(0.5, {"env": 1.0, "overlong": -0.5})
    of = group(0, ("1", 1.0), ("0", 0.0))
    groups = [EpisodeGroup(of.task, (replace(of.episodes[0], outcome=long), of.episodes[1])), group(1, ("1", 1.0), ("1", 0.0))]
    run = stored(recipe(made / "tiny", "burnish/Arithmetic-v0"), groups, tmp_path / "run")
    found = json.loads(regrade(run, made, "--json").output)
    assert found["was"]["mean"] == 0.5 and found["now"]["mean"] == 0.75
    constant = json.loads(regrade(run, made, "--json", "--arg", "times=0.0").output)
    assert constant["correlation"] is None and constant["disagreements"] == []


def test_a_reward_sees_what_it_saw_when_the_episode_was_played(made: Path, tmp_path: Path) -> None:
    run = recipe(made / "tiny", "burnish/QualityInspection-v0", max_turns=6)
    folder = stored(run, played(run, seeded(3), INSPECTS), tmp_path / "run")
    for episode in chosen(folder, Which()):
        seen = reward_input(episode)
        assert seen.data["level"] == 0 and seen.task.seed == int(episode.task.id.partition("-")[2]) + 1000
        assert seen.metrics.keys() == {"cost", "tool_calls", "tool_rejected", "malformed_calls", "turns"}
        assert seen.metrics["turns"] == episode.turns


@pytest.fixture
def verifier() -> Iterator[str]:
    def judge(request: RewardInput) -> Score:
        return Score(-float(request.answer or 0))

    with mock_verifier(judge, "verdicts.example:50052") as mock:
        yield mock.address


def test_a_verifier_that_runs_scores_too(graded: Path, verifier: str) -> None:
    done = burnish("regrade", graded, "--verifier", verifier, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["now"]["mean"] == -9 / 7


def test_what_is_asked_must_make_sense(graded: Path, made: Path) -> None:
    for arguments, said in (
        (["--arg", "a=1"], "--arg has no effect with the run's own recipe"),
        (["--verifier-id", "a/c-v1"], "--verifier-id has no effect with the run's own recipe"),
        (["--reward", "a/b-v1", "--trust"], "--trust has no effect with --reward"),
        (["--reward", "a/b-v1", "--verifier", "127.0.0.1:1"], "not --reward and --verifier"),
        (["--verifier", "127.0.0.1:1", "--arg", "a=1"], "--arg has no effect with --verifier"),
        (["--reward", "a/b-v1", "--verifier-id", "a/c-v1"], "--verifier-id has no effect with --reward"),
        (["--reward", "a/b-v1"], "nothing is registered under 'a'"),
        (["--reward", "burnish/inspection-cost-v1", "--against", "vedict"], "--against vedict: no episode has this part; there are env"),
    ):
        done = burnish("regrade", graded, *arguments)
        assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_ranks_share_ties_and_a_constant_has_no_correlation() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])) == pytest.approx(-0.5)
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None
    assert spearman(np.zeros(0), np.zeros(0)) is None
