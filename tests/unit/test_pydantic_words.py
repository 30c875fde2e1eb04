"""What pydantic says, as users read it; what is said of a namespace that nothing is registered under; and the blends of a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from tests.unit.command_tree import commands
from tests.unit.guard_policy import TOML, tables
from typer.testing import CliRunner

from burnish.cli.errors import report
from burnish.cli.main import app
from burnish.envs.pydantic_words import MOST_ERRORS, _models_in, first_error
from burnish.guardrails.policy import Policy, read_policy
from burnish.inspector.blends import blend_rows
from burnish.inspector.runs import MetricRow, RecordedRun
from burnish.recipe.load import config_from_data
from burnish.rewards.graders.types import read_grader
from burnish.serving.config import ServingConfig
from burnish.serving.deployment import Deployment

pytestmark = pytest.mark.unit


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Table(BaseModel):
    steps: int = 1

    @field_validator("steps")
    @classmethod
    def _some(cls, value: int) -> int:
        if value < 1:
            raise ValueError("needs at least one")
        return value


def test_of_a_value_that_is_all_wrong_only_the_number_is_said() -> None:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({f"k{i}": 1 for i in range(MOST_ERRORS + 1)})
    assert first_error(caught.value, Strict) == "1,001 things in it are wrong"


RECIPE = {"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0"}
GRADER = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}


@pytest.mark.parametrize(
    "read",
    [
        lambda wrong: config_from_data(RECIPE | wrong),
        lambda wrong: read_grader(GRADER | wrong),
        lambda wrong: read_policy(tables() | wrong),
    ],
    ids=["recipe", "grader", "policy"],
)
def test_of_many_problems_a_hundred_are_told_and_of_very_many_their_number(read: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError) as caught:
        read({f"key{i}": 1 for i in range(150)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 101 and ": key99: " in lines[99] and lines[100] == "and 50 problems more"
    with pytest.raises(ValueError, match=r"^\w+: 1,001 things in it are wrong$"):
        read({f"key{i}": 1 for i in range(MOST_ERRORS + 1)})


@pytest.mark.parametrize(("steps", "said"), [(0, "steps: needs at least one"), ("x", "steps: must be an integer")])
def test_no_prefix_link_or_type_of_pydantic_is_shown(steps: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Table.model_validate({"steps": steps})
    assert first_error(caught.value).startswith(said)
    assert report(caught.value) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}") and len(shown.splitlines()) == 1
    assert "Value error" not in shown and "pydantic" not in shown


def test_a_detector_of_ones_own_is_named_by_a_plugin_and_without_one_the_way_is_shown(tmp_path: Path) -> None:
    use = '[[detectors]]\nuse = "words-test/loud-v1"\nname = "loud"\ncategory = "rivals"\n'
    (tmp_path / "policy.toml").write_text(f"{TOML}\n{use}")
    (tmp_path / "loud.py").write_text(
        "from burnish.guardrails.registry import detector\nfrom burnish.guardrails.types import Match\n"
        '@detector("words-test/loud-v1", reads=("original",))\ndef loud(policy, use):\n'
        "    return lambda text: [Match(use.name, use.category, 0, len(text))] if text.isupper() else []\n"
    )
    asked = ["guard", "check", str(tmp_path / "policy.toml"), "--text", "HELLO"]
    without = CliRunner().invoke(app, asked)
    assert without.exit_code == 2
    assert "nothing is registered under 'words-test'" in without.stderr and "--plugin FILE.py, or" in without.stderr
    found = CliRunner().invoke(app, [*asked, "--plugin", str(tmp_path / "loud.py")])
    assert found.exit_code == 1 and "loud at 0" in found.stdout
    (tmp_path / "talks.jsonl").write_text('{"messages": [{"role": "user", "content": "HELLO"}, {"role": "assistant", "content": "Hi."}]}\n')
    rows = ["data", "check", str(tmp_path / "talks.jsonl"), "--plugin", str(tmp_path / "loud.py")]
    checked = CliRunner().invoke(app, [*rows, "--policy", str(tmp_path / "policy.toml")])
    assert checked.exit_code == 1 and "1 rivals" in checked.stdout
    assert "--plugin has no effect without --policy" in CliRunner().invoke(app, rows).stderr


def test_every_command_with_a_policy_takes_its_detectors() -> None:
    for path, command in commands().items():
        names = {name for parameter in command.params for name in (*parameter.opts, parameter.metavar)}
        assert "--plugin" in names or not names & {"--policy", "POLICY"}, path


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        (["serve-env", "words-test/Own-v0"], "my_file.py:words-test/Own-v0 names one of your own"),
        (["serve-verifier", "words-test/own-v1"], "my_file.py:NAME names one of your own"),
        (["data", "catalog", "words-test/own-v1"], "a folder with a catalog.toml is one of your own"),
    ],
)
def test_an_error_names_no_option_that_the_command_lacks(arguments: list[str], way: str) -> None:
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 2 and "nothing is registered under 'words-test'" in said.stderr
    assert way in said.stderr and "--plugin" not in said.stderr


def test_the_blends_of_a_report_are_those_of_named_phases_and_of_replay_too(tmp_path: Path) -> None:
    sources = '[{"name": "own", "asked": "3/4", "rows": 9, "rejected": 1}, {"name": "more", "asked": "1/4", "rows": 5, "rejected": 0}]'
    for phase in ("manners", "play"):
        (tmp_path / "data" / phase).mkdir(parents=True)
        (tmp_path / "data" / phase / "blend.json").write_text(f'{{"by": "samples", "sources": {sources}}}')
    play = {"kind": "rft", "name": "play", "blend": [{"name": "sums", "environment": "a/b-v0", "percent": 25}], "replay": {}}
    config = {"phases": [{"kind": "sft", "name": "manners"}, play, {"kind": "sft", "name": "../../etc"}]}
    blends = {"blend/own": 0.75, "blend/sums": 0.25, "groups_sampled": 4.0, "replay_blend/own": 0.8, "replay_blend/more": 0.2}
    blends |= {"blend_tokens/own": 9.0, "blend_tokens/sums": 1.0}
    metrics = (
        MetricRow("manners", 1, 1.0, {"blend/own": 0.7, "blend/more": 0.3, "blend_tokens/own": 60.0, "blend_tokens/more": 40.0}),
        MetricRow("play", 1, 2.0, blends),
    )
    found = blend_rows(RecordedRun(tmp_path, config, {}, {}, metrics, (), ()))
    assert [(one.phase, one.source, one.asked, one.samples, one.tokens) for one in found] == [
        ("manners", "own", 0.75, 0.7, 0.6),
        ("manners", "more", 0.25, 0.3, 0.4),
        ("play", "own", 0.75, 0.75, 0.9),
        ("play", "sums", 0.25, 0.25, 0.1),
        ("play replay", "own", 0.75, 0.8, None),
        ("play replay", "more", 0.25, 0.2, None),
    ]


@pytest.mark.parametrize("recorded", [False, True])
def test_steps_in_which_nothing_else_was_sampled_count_for_the_own_environment(tmp_path: Path, recorded: bool) -> None:
    config = {"rft": {"blend": [{"name": "tools", "environment": "a/b-v0", "percent": 2.5}]}}
    quiet = {"groups_sampled": 8.0, **({"blend/own": 1.0, "blend/tools": 0.0} if recorded else {})}
    rows = [quiet, quiet, {"groups_sampled": 8.0, "blend/own": 0.875, "blend/tools": 0.125}, quiet, quiet]
    metrics = tuple(MetricRow("rft", step, float(step), row) for step, row in enumerate(rows, 1))
    own, tools = blend_rows(RecordedRun(tmp_path, config, {}, {}, metrics, (), ()))
    assert (own.source, own.samples) == ("own", pytest.approx(0.975)) and (tools.source, tools.samples) == ("tools", pytest.approx(0.025))


@pytest.mark.parametrize("blend", [5, {"a": 1}, [1], "x", [{"percent": None}], [{"percent": "x"}], [{"percent": 10**400}]])
@pytest.mark.parametrize("phases", [False, True])
def test_a_blend_of_a_config_that_is_none_is_said_with_its_file(tmp_path: Path, blend: object, phases: bool) -> None:
    config = {"phases": [{"kind": "rft", "blend": blend}]} if phases else {"rft": {"blend": blend}}
    with pytest.raises(ValueError, match=r"config\.json: the blend of rft cannot be read: "):
        blend_rows(RecordedRun(tmp_path, config, {}, {}, (), (), ()))


def models_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A class and those of the tables within its own."""
    found = {model}
    for field in model.model_fields.values():
        for one in _models_in(field.annotation):
            found |= models_of(one)
    return found


@pytest.mark.parametrize("root", [Policy, ServingConfig, Deployment])
def test_what_people_write_as_true_or_false_is_that_and_no_word_or_number(root: type[BaseModel]) -> None:
    asked = 0
    for model in models_of(root):
        for name in [name for name, field in model.model_fields.items() if field.annotation is bool]:
            asked += 1
            for value in (1, 0.0, "yes", "true"):
                with pytest.raises(ValidationError) as caught:
                    model.model_validate({name: value})
                assert name in {detail["loc"][0] for detail in caught.value.errors() if detail["type"] != "missing"}, (model, name, value)
    assert asked >= 3
