"""The curated catalog: its answers keep what they promise, its versions never change, and folders of one's own are held to the same."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import pytest

from burnish.envs.builtin.inspection.corpus import TRAIN_SEEDS
from burnish.envs.builtin.inspection.wording import parse_verdict
from burnish.envs.tool_calls import parse_tool_calls
from burnish.rewards.builtin.constraints import follows
from burnish.trainer.data.config import CATALOG
from burnish.trainer.data.curated import instructions, reasoning, tool_use
from burnish.trainer.data.curated.catalog import CATALOGS, CuratedSet, find_catalog, read_catalog
from burnish.trainer.data.curated.general import GENERAL, GENERAL_2
from burnish.trainer.data.forms import Conversation, read_conversation
from burnish.trainer.data.sources import found_curated
from burnish.trainer.evaluation.suites.finding import find_suite

pytestmark = pytest.mark.unit

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def test_every_set_has_a_card_a_licence_and_the_digest_of_its_version() -> None:
    assert find_catalog("burnish/general-v1") is GENERAL and "burnish/general-v1" in [row.id for row in CATALOGS.list()]
    assert find_catalog(CATALOG) is GENERAL_2 and set(GENERAL_2.sets) - set(GENERAL.sets) == {"reasoning"}
    for name, one in GENERAL_2.sets.items():
        assert one.digest == one.sha256, f"{name} is not what its version was: give what has changed a new version"
        assert len(one.about) > 40 and one.licence == "Apache-2.0" and (one.make is None) != (one.file is None)


def test_instructions_are_kept_by_their_answers() -> None:
    made = list(instructions.rows(3, 400))
    kinds = {tuple(sorted(row["metadata"]["checks"])) for row in made}
    assert len(kinds) >= 8 and len({row["messages"][0]["content"] for row in made}) > 250
    for row in made:
        assert follows(row["messages"][1]["content"], row["metadata"]["checks"])
        assert json.loads(json.dumps(row)) == row
    assert list(islice(instructions.rows(3, 900), 400)) == made and list(instructions.rows(4, 5)) != made[:5]


def test_reasoning_says_its_steps_and_asks_nothing_that_a_suite_asks() -> None:
    made = list(reasoning.rows(3, 2100))
    asked = {row["messages"][0]["content"] for row in made}
    assert len(asked) > 1500 and list(islice(reasoning.rows(3, 3000), 2100)) == made
    for row in made:
        assert follows(row["messages"][1]["content"], row["metadata"]["checks"])
    chain = next(row["messages"][1]["content"] for row in reasoning.rows(0, 1))
    assert chain == "12 - 9 = 3. 3 - 9 = -6. The answer is -6."
    procedural = find_suite("burnish/procedural-v1")
    assert procedural.tasks is not None
    assert not asked & {task.prompt[0].text for task in procedural.tasks(procedural.items)}
    sums = [[int(n) for n in re.findall(r"\d+", one)] for one in asked if re.fullmatch(r"What is \d+ [+-] \d+\?", one)]
    largest = find_suite("burnish/arithmetic-v1").environment_args["max_operand"]
    assert len(sums) > 200 and all(min(pair) > largest for pair in sums)


@pytest.mark.parametrize(
    ("checks", "good", "bad"),
    [
        ({"items": 2}, "a, b", "a, b, c"),
        ({"lines": 2}, "a\nb", "a"),
        ({"upper": True}, "ABC", "Abc"),
        ({"lower": True}, "abc", "Abc"),
        ({"words": 3}, "a b c", "a b"),
        ({"starts": "a", "ends": "z"}, "a to z", "a to y"),
        ({"json": {"a": 1}}, '{"a": 1}', '{"a": 2}'),
        ({"json": {"a": 1}}, '{"a": 1.0}', "a: 1"),
        ({"bullets": 2}, "- a\n- b", "- a\nb"),
        ({"without": "fig"}, "figure", "a Fig."),
    ],
)
def test_constraints_by_hand(checks: dict[str, object], good: str, bad: str) -> None:
    assert follows(good, checks) and not follows(bad, checks)
    with pytest.raises(ValueError, match="'shorter' is no constraint; known are equals, items"):
        follows(good, {"shorter": 1})


def test_tools_are_called_in_the_text_and_inspections_end_in_a_verdict() -> None:
    shop = [{"type": "function", "function": {"name": name, "parameters": {"properties": {"item": {}}}}} for name in ("price", "stock")]
    talks = [read_conversation(row).messages for row in tool_use.rows(1, 200)]
    assert [message.role for message in talks[0]][:2] == ["system", "user"]
    for talk in talks[::2]:
        calls = [parse_tool_calls(message.text, shop) for message in talk if message.role == "assistant"]
        assert not calls[-1] and all(isinstance(call, tuple) and len(call) == 1 for call in calls[:-1])
        assert len(calls) - 1 == sum(message.role == "tool" for message in talk)
    assert all(parse_verdict(talk[-1].text) is not None for talk in talks[1::2])
    assert sum(len(talk) == 3 for talk in talks[::2]) > 20, "some questions no tool can answer"
    assert TRAIN_SEEDS == 1_000_000_000


def test_refusals_and_their_look_alikes_are_conversations_of_two() -> None:
    rows = list(found_curated(GENERAL, "refusal", 0, 0))
    assert len(rows) == 40
    talks = [row.messages for row in rows if isinstance(row, Conversation)]
    assert len(talks) == 40 and all([message.role for message in talk] == ["user", "assistant"] for talk in talks)
    assert len({talk[0].text for talk in talks}) == 40


def folder_of(tmp_path: Path, toml: str, data: str = json.dumps(ROW) + "\n") -> Path:
    (tmp_path / "answers.jsonl").write_text(data)
    (tmp_path / "catalog.toml").write_text(toml)
    return tmp_path


TOML = 'id = "my-team/support-v1"\n[sets.answers]\nfile = "answers.jsonl"\nabout = "Answers."\nlicence = "MIT"\n'


def test_a_folder_is_a_catalog_whose_files_are_held_to_their_digests(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TOML)
    one = read_catalog(folder).sets["answers"]
    with pytest.raises(
        ValueError, match=rf'answers has no sha256; write sha256 = "{one.digest}" below \[sets\.answers\] of its catalog\.toml'
    ):
        find_catalog(str(folder))
    folder_of(tmp_path, TOML + f'sha256 = "{one.digest}"\n')
    catalog = find_catalog(str(folder))
    assert (catalog.id, len(list(found_curated(catalog, "answers", 0, 5)))) == ("my-team/support-v1", 1)
    (folder / "answers.jsonl").write_text("changed\n")
    with pytest.raises(ValueError, match="a changed set needs a new version"):
        find_catalog(str(folder))


def test_a_set_that_unpacks_to_far_more_than_text_does_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, TOML.replace("answers.jsonl", "answers.jsonl.gz"))
    packed = folder / "answers.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "answers.jsonl").read_bytes() * 1000))
    assert read_catalog(folder).sets["answers"].digest == hashlib.sha256((folder / "answers.jsonl").read_bytes() * 1000).hexdigest()
    monkeypatch.setattr("burnish.envs.row_files.FREE_BYTES", 1 << 16)
    packed.write_bytes(gzip.compress(b"\n" * 2**22))
    with pytest.raises(ValueError, match=r"answers\.jsonl\.gz: the compressed file unpacks to more than 250 times its size"):
        find_catalog(str(folder))


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("", r"catalog\.toml: id: is required"),
        ("id = 3\n[sets.a]", r"catalog\.toml: id: "),
        (TOML.replace("my-team/support-v1", "support"), "catalog id 'support' must read namespace/name-vN"),
        (TOML.replace("answers.jsonl", "../secret.jsonl"), r"\.\./secret\.jsonl lies outside the folder"),
        (TOML.replace("answers.jsonl", "gone.jsonl"), r"gone\.jsonl is not a file"),
        (TOML.replace("answers.jsonl", "catalog.toml"), r"the suffix '\.toml' is unknown"),
        (TOML + 'url = "https://example.com"\n', r"sets\.answers\.url: unknown key"),
        (TOML.replace("sets.answers", 'sets."../x"'), r"catalog\.toml: sets\.'\.\./x': a set is called by letters, digits"),
        (TOML.replace("sets.answers", "sets.own"), r"and not own or held_out"),
        ("id = ", r"catalog\.toml: not TOML: Invalid value"),
    ],
)
def test_what_is_no_catalog(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_catalog(folder_of(tmp_path, toml))


def test_a_made_set_is_held_to_its_first_rows() -> None:
    one = CuratedSet("x", "MIT", "", make=lambda seed, count: iter([ROW] * count))
    other = CuratedSet("x", "MIT", "", make=lambda seed, count: iter([ROW] * (count - 1) + [{}]))
    assert one.digest != other.digest and one.digest == CuratedSet("y", "MIT", "", make=one.make).digest
