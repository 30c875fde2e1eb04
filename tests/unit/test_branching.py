"""`burnish branch`: a stored episode goes on from one of its turns, with the words of another speaker."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, speaking, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Message
from burnish.inspector.stored import StoredEpisode, Which, chosen
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.engine.base import Engine, GenerateRequest
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.renderers import Renderer
from burnish.rollout.worker import WorkerSetup
from burnish.run.branching import MakeEngine, branch
from burnish.trainer.models.checkpoints import JOURNAL, CheckpointRecord, list_checkpoints, refuse_promotion

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("branch") / "model")


@pytest.fixture(scope="module")
def run(model: Path) -> ResolvedRun:
    return recipe(model, "burnish/QualityInspection-v0", max_turns=3)


@pytest.fixture(scope="module")
def folder(run: ResolvedRun, model: Path) -> Path:
    return stored(run, played(run, seeded(6), INSPECTS[:10]), model.parent / "runs" / "branch-1")


@pytest.fixture
def three_turns(folder: Path) -> StoredEpisode:
    return next(one for one in chosen(folder, Which()) if one.turns == 3)


def speaker(asked: list[GenerateRequest], says: str = "verdict: scrap; reason: undersize") -> MakeEngine:
    def make(setup: WorkerSetup, renderer: Renderer) -> Engine:
        def said(request: GenerateRequest) -> list[int]:
            asked.append(request)
            return [*renderer.encode(says), request.stop_token_ids[0]]

        return ScriptedEngine(said, max_context=setup.engine.max_context)

    return make


def test_it_says_what_was_said_and_then_what_the_speaker_says(run: ResolvedRun, model: Path, three_turns: StoredEpisode) -> None:
    asked: list[GenerateRequest] = []
    found = branch(run, {}, model, three_turns, 2, 3, speaker(asked))
    spoken = [i for i, message in enumerate(three_turns.messages) if message.role == "assistant"]
    assert found.parted is None and len(found.attempts) == 3
    for attempt in found.attempts:
        assert attempt.messages[: spoken[1]] == three_turns.messages[: spoken[1]]
        assert attempt.messages[spoken[1]].text == "verdict: scrap; reason: undersize" and len(attempt.turns) == 2
        assert attempt.env_data["verdict"] == "scrap" and attempt.task.seed == three_turns.task.seed
    assert [int(request.request_id.rpartition("/")[2]) for request in asked] == [1, 1, 1]  # the first turn was not asked for


def test_from_the_first_turn_on_all_is_said_anew(run: ResolvedRun, model: Path, three_turns: StoredEpisode) -> None:
    asked: list[GenerateRequest] = []
    found = branch(run, {}, model, three_turns, 1, 2, speaker(asked))
    assert found.parted is None and [len(one.turns) for one in found.attempts] == [1, 1] and len(asked) == 2


def test_an_environment_that_answers_otherwise_is_named(run: ResolvedRun, model: Path, three_turns: StoredEpisode) -> None:
    messages = list(three_turns.messages)
    place = next(i for i, message in enumerate(messages) if message.role != "assistant" and i > 0)
    messages[place] = Message(messages[place].role, "another answer", tool_call_id=messages[place].tool_call_id, name=messages[place].name)
    found = branch(run, {}, model, replace(three_turns, messages=tuple(messages)), 2, 1, speaker([]))
    assert found.parted == (place, "another answer", three_turns.messages[place].text)


@pytest.mark.parametrize(("turn", "samples", "said"), [(4, 1, "--turn 4: the policy spoke 3 times"), (1, 0, "--samples 0")])
def test_what_cannot_be_is_refused(run: ResolvedRun, model: Path, three_turns: StoredEpisode, turn: int, samples: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        branch(run, {}, model, three_turns, turn, samples, speaker([]))
    other = replace(three_turns, task=replace(three_turns.task, environment="Elsewhere"))
    with pytest.raises(ValueError, match="'Elsewhere', which the recipe does not blend"):
        branch(run, {}, model, other, 1, 1, speaker([]))


def test_turns_that_the_messages_do_not_have_are_refused(run: ResolvedRun, model: Path, three_turns: StoredEpisode) -> None:
    with pytest.raises(ValueError, match="its messages and its turns do not fit together"):
        branch(run, {}, model, replace(three_turns, turns=9), 8, 1, speaker([]))


def test_the_command_says_what_came_of_it(
    run: ResolvedRun, model: Path, folder: Path, three_turns: StoredEpisode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("burnish.rollout.engine.make_engine", speaking("verdict: scrap; reason: undersize"))
    monkeypatch.setattr("burnish.cli.branch.needs_engine", lambda command: None)
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'name = "branch"\nmodel = "{model}"\nenvironment = "burnish/QualityInspection-v0"\nmulti_turn_rollouts = true\n'
        "[rollout]\nmax_turns = 3\nmax_tokens_per_turn = 64\n[engine]\nmax_context = 8192\n[rft]\nsteps = 1\n"
    )
    command = ["branch", str(folder), three_turns.id, "--recipe", str(file), "--turn", "2", "-n", "2", "--model", str(model)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "from turn 2 on, 2 times" in result.output and "verdict: scrap; reason: undersize" in result.output and "mean" in result.output
    row = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    (folder / "recipe.toml").write_text(file.read_text().replace("QualityInspection", "Arithmetic"))  # as it was given, before --set
    own = CliRunner().invoke(app, [word for word in command if word not in ("--recipe", str(file))])
    assert own.exit_code == 0 and own.output == result.output, own.output
    assert (row["episode"], row["turn"], row["parted"], len(row["attempts"])) == (three_turns.id, 2, None, 2)
    assert row["model"] == str(model.resolve()) and result.output.splitlines()[1] == f"{model.resolve()} speaks"
    assert row["attempts"][0]["messages"][-1]["content"] == "verdict: scrap; reason: undersize"


def test_the_latest_checkpoint_that_is_promoted_speaks_and_is_named(
    run: ResolvedRun, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("burnish.rollout.engine.make_engine", speaking("verdict: scrap; reason: undersize"))
    monkeypatch.setattr("burnish.cli.branch.needs_engine", lambda command: None)
    folder = stored(run, played(run, seeded(1), INSPECTS[:10]), tmp_path / "refused")
    for phase, step in (("sft", 5), ("sft", 6), ("rft", 2)):
        record = CheckpointRecord(phase=phase, step=step, final=True, created_at=datetime(2026, 1, 1, tzinfo=UTC))
        shutil.copytree(model, record.model(folder))
        with (folder / JOURNAL).open("a") as journal:
            journal.write(record.model_dump_json() + "\n")
    refuse_promotion(folder, list_checkpoints(folder)[-1], "arithmetic fell by 9 points")
    result = CliRunner().invoke(app, ["branch", str(folder), "train-0/0", "-n", "1", "--json"])
    assert json.loads(result.stdout)["model"] == str((folder / "checkpoints" / "sft-6" / "model").resolve()), result.output
    shutil.rmtree(folder / "checkpoints" / "sft-6")
    result = CliRunner().invoke(app, ["branch", str(folder), "train-0/0", "-n", "1", "--json"])
    assert result.stderr == "the folder of sft-6 is gone: sft-5 speaks\n"
    assert json.loads(result.stdout)["model"] == str((folder / "checkpoints" / "sft-5" / "model").resolve())
    shutil.rmtree(folder / "checkpoints" / "sft-5")
    result = CliRunner().invoke(app, ["branch", str(folder), "train-0/0", "-n", "1"])
    assert result.exit_code == 2 and "records checkpoint sft-5, but its folder is gone" in result.stderr
