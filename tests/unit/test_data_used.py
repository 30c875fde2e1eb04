"""What the manifest of a checkpoint says of the data: sources, digests, and the shares of a blend that were asked for and had."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.one_step import make_policy

from burnish.cli.models import show_named
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.run.data_used import data_used
from burnish.trainer.demonstrations import Demonstrations
from burnish.trainer.models.card import model_card
from burnish.trainer.models.folder import Origin, write_manifest
from burnish.trainer.models.manifest import BlendShare, DataUse, Training, read_manifest

pytestmark = pytest.mark.unit

TALKS = (
    DataUse(source="own.jsonl", sha256="a" * 64, examples=7, share=BlendShare(name="own", by="samples", asked=0.7)),
    DataUse(source="general", sha256="b" * 64, examples=90, share=BlendShare(name="general", by="samples", asked=0.3)),
)


class Stream:
    """Two sources by turns, whose examples teach 3 tokens and 1."""

    def shares(self, samples: int) -> dict[str, float]:
        return {"own": 0.5, "general": 0.5}

    def taught(self, samples: int) -> dict[str, int]:
        return {"own": 3 * samples // 2, "general": samples // 2}


def run_of(recipe: dict[str, Any], data: dict[str, Any], shown: Any = None) -> Any:
    config = config_from_data({"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0", "platform": "cpu", **recipe})
    loop = SimpleNamespace(updates=SimpleNamespace(demonstrations=shown))
    uses = {name: SimpleNamespace(uses=one) for name, one in data.items()}
    run = SimpleNamespace(recipe=resolve(config), session=SimpleNamespace(files=None, loop=loop), data=uses)
    return run, run.recipe.phases[0].table


def shares(found: tuple[DataUse, ...]) -> list[tuple[str, float, float | None, float | None]]:
    return [(one.share.name, one.share.asked, one.share.drawn, one.share.tokens) for one in found if one.share is not None]


def test_the_sources_of_a_blend_have_the_shares_that_were_drawn_and_taught(tmp_path: Path) -> None:
    """Of samples so far, the last step says it; tokens add up: 30 + 30 of 100."""
    run, table = run_of({"sft": {"steps": 2, "generate": "m:f"}}, {"sft": TALKS})
    rows = [
        {"blend/own": 0.5, "blend/general": 0.5, "blend_tokens/own": 30.0, "blend_tokens/general": 20.0},
        {"blend/own": 0.75, "blend/general": 0.25, "blend_tokens/own": 30.0, "blend_tokens/general": 20.0},
    ]
    found = data_used(run, table, rows)
    assert shares(found) == [("own", 0.7, 0.75, 0.6), ("general", 0.3, 0.25, 0.4)]
    assert [(one.source, one.sha256) for one in found] == [("own.jsonl", "a" * 64), ("general", "b" * 64)]
    assert shares(data_used(run, table, [])) == [("own", 0.7, None, None), ("general", 0.3, None, None)]


def test_tasks_of_every_environment_have_a_digest_and_a_share_of_the_groups() -> None:
    """Ten groups, of which 1 of 4 and 3 of 6 were of the other environment."""
    sums = {"environment": "burnish/Arithmetic-v0", "environment_args": {"operations": ["+"]}, "percent": 30.0, "name": "sums"}
    run, table = run_of({"rft": {"blend": [sums, {**sums, "name": "idle", "percent": 0.0}]}, "train_seeds": [0, 500]}, {})
    rows = [
        {"groups_sampled": 4.0, "blend/own": 0.75, "blend/sums": 0.25, "blend_tokens/own": 60.0, "blend_tokens/sums": 0.0},
        {"groups_sampled": 6.0, "blend/own": 0.5, "blend/sums": 0.5, "blend_tokens/own": 0.0, "blend_tokens/sums": 20.0},
    ]
    own, other = data_used(run, table, rows)
    assert shares((own, other)) == [("own", 0.7, pytest.approx(0.6), 0.75), ("sums", 0.3, pytest.approx(0.4), 0.25)]
    assert (own.source, own.examples) == ("burnish/Arithmetic-v0, seeds 0 to 499", None)
    by = '{"args":{"operations":["+"]},"environment":"burnish/Arithmetic-v0","seeds":[0,1000000000]}'
    assert other.sha256 == hashlib.sha256(by.encode()).hexdigest() != own.sha256
    plain, table = run_of({"rft": {}, "train_seeds": [0, 500]}, {})
    (alone,) = data_used(plain, table, [])
    assert alone.share is None and alone.sha256 == own.sha256, "the same tasks"


def test_what_was_replayed_is_told_beside_the_tasks(tmp_path: Path) -> None:
    """12 sequences at a share of a quarter are 4 demonstrations, which teach 6 tokens and 2."""
    replay = {"data": "own.jsonl", "share": 0.25}
    (tmp_path / "own.jsonl").touch()
    replay["data"] = str(tmp_path / "own.jsonl")
    shown = Demonstrations(Stream(), 0.1, Fraction(1, 4))  # type: ignore[arg-type]
    run, table = run_of({"rft": {"replay": replay}}, {"rft": TALKS}, shown)
    tasks, *replayed = data_used(run, table, [shown.metrics(6), shown.metrics(12)])
    assert tasks.share is None and not tasks.replayed and all(one.replayed for one in replayed)
    assert shares(tuple(replayed)) == [("own", 0.7, 0.5, 0.75), ("general", 0.3, 0.5, 0.25)]
    assert shares(data_used(run, table, [])) == [("own", 0.7, None, None), ("general", 0.3, None, None)]


def test_card_and_command_say_what_the_manifest_says_of_a_blend(tmp_path: Path) -> None:
    share = BlendShare(name="own", by="samples", asked=0.7, drawn=0.7, tokens=0.641)
    uses = (TALKS[0].model_copy(update={"share": share}), DataUse(source="x, seeds 0 to 9", replayed=True))
    folder = make_policy(tmp_path / "m")
    (folder / "burnish.json").unlink()
    training = Training(run="r", phase="sft", kind="sft", step=4, recipe_sha256="c" * 64, data=uses)
    write_manifest(folder, Origin(name="m", stage="sft", source="r/sft-4", training=training))
    said = "own: 70.00% of samples asked for, 70.00% drawn, 64.10% of trained tokens"
    assert f"| own.jsonl | 7 | {'a' * 12} | {said} |" in model_card(read_manifest(folder))
    shown = show_named(str(folder), tmp_path)
    assert any(line.endswith(f"own.jsonl, 7 examples, sha256:{'a' * 64}, {said}") for line in shown.lines)
    assert any(line.endswith("x, seeds 0 to 9, sha256:none, replayed") for line in shown.lines)
    assert json.loads((folder / "burnish.json").read_text())["training"]["data"][0]["share"]["tokens"] == 0.641
