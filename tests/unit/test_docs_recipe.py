"""The reference of the recipe: the committed page is what the code gives, and no key is without a description."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.pydantic_words import inner_model, kinds_of
from burnish.recipe.config import RunConfig
from burnish.recipe.reference import descriptions, recipe_page, recipe_tables
from burnish.trainer.phases.common import PHASE_OWNS

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"


def configs(model: type[BaseModel] = RunConfig) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        inner = inner_model(field.annotation)
        if inner is not None and not (kinds_of(field.annotation) or may_be_false(field.annotation)):
            yield from configs(inner)


def may_be_false(annotation: Any) -> bool:
    """Such a table is described where its keys are: a row says where."""
    return Literal[False] in get_args(annotation)


def plain(model: type[BaseModel]) -> set[str]:
    kinds = {key: field.annotation for key, field in model.model_fields.items()}
    return {key for key, kind in kinds.items() if inner_model(kind) is None or kinds_of(kind) or may_be_false(kind)}


def test_the_page_is_what_the_code_gives() -> None:
    assert PAGE.read_text() == recipe_page(), "the configs have changed: run `make docs`"


def test_every_key_has_a_description_and_a_row() -> None:
    for model, table in zip(configs(), recipe_tables(), strict=True):
        own = PHASE_OWNS if table.name == "learner.optimizer" else frozenset()
        assert {key.name for key in table.keys} == plain(model) - own, table.name
        assert all(len(key.text) > 3 for key in table.keys), table.name


class Kettle(BaseModel):
    """The `[kettle]` table: boiling water.

    Both say when to stop. degrees, litres: of the water; in warm countries
    fewer will do. lid: see litres: they count with it.
    """

    degrees: float = Field(default=100.0, gt=0)
    litres: int
    lid: bool = False


class Teapot(Kettle):
    """Tea. lid: of china."""

    leaves: str = ""


def test_sentences_begin_with_the_keys_they_are_about() -> None:
    water = "of the water; in warm countries fewer will do"
    assert descriptions(Kettle) == {"degrees": water, "litres": water, "lid": "see litres: they count with it"}
    with pytest.raises(ValueError, match="the docstring of Teapot does not say what leaves is: write `leaves: …`"):
        descriptions(Teapot)


def test_types_limits_and_defaults_are_those_of_the_fields() -> None:
    rows = {f"{table.name}.{key.name}".lstrip("."): key for table in recipe_tables() for key in table.keys}
    assert (rows["rft.lr"].type, rows["rft.lr"].default) == ("number > 0 ≤ 1", "–")
    assert (rows["cpt.lr"].default, rows["sft.lr"].default) == ("`0.001`", "`0.0003`")  # each phase's own, the rest inherited
    assert (rows["name"].type, rows["name"].default) == ("string", "required")
    assert rows["rewards.normalize"].type == '`"minmax"`, `"group"`'
    assert rows["train_seeds"].type == "[integer, integer]"
    assert rows["services.NAME.tls.ca"].default == "–"


def test_the_command_prints_the_page_or_a_table() -> None:
    assert CliRunner().invoke(app, ["recipe"]).stdout == PAGE.read_text()
    said = CliRunner().invoke(app, ["recipe", "rft"]).stdout
    assert said.startswith("## `[rft]`\n") and "## `[rft.objective]`\n" in said and "[rollout]" not in said
    wrong = CliRunner().invoke(app, ["recipe", "rolout"])
    assert wrong.exit_code == 2
    assert "a recipe has no table 'rolout'; did you mean 'rollout'?" in wrong.stderr
