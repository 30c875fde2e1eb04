"""Suites: what they ask, how answers are scored, and what two evaluations of one amount to. Numbers are computed by hand."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tests.unit.one_step import make_policy

from burnish.envs.contract import ENVS
from burnish.envs.types import Message, Task
from burnish.rewards.builtin.constraints import constraints, follows
from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import REWARDS, reward
from burnish.rewards.types import RewardInput
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.store import reading
from burnish.rollout.tokenizer import load_tokenizer
from burnish.rollout.weights import SyncProofError
from burnish.rollout.worker import RolloutWorker
from burnish.run.suites import changes_between, compare_folders, evaluate_suites, suite_setup
from burnish.trainer.data.curated.general import GENERAL, GENERAL_2
from burnish.trainer.data.curated.reasoning import KINDS
from burnish.trainer.data.forms import Conversation
from burnish.trainer.data.overlap import words_of
from burnish.trainer.data.sources import found_curated
from burnish.trainer.evaluation.alone import LoneFleet
from burnish.trainer.evaluation.statistics import EvaluationFailed, exact_interval
from burnish.trainer.evaluation.suites.builtin import REFUSED
from burnish.trainer.evaluation.suites.files import read_suite, rows_of
from burnish.trainer.evaluation.suites.finding import find_suite, find_suites
from burnish.trainer.evaluation.suites.measure import Asking, measure, tasks_of
from burnish.trainer.evaluation.suites.scores import ItemScore, Scores, guessed_right, pass_at_k, read_scores, write_scores
from burnish.trainer.evaluation.suites.suite import SUITES, Suite, register_suite
from burnish.trainer.evaluation.suites.transitions import Transitions, change, retention

pytestmark = pytest.mark.unit

REWARD = "tests/says-b-v1"
ROW = {"messages": [{"role": "user", "content": "A or B?"}], "reference_answer": "B"}


def answers(scores: Sequence[float | None], chance: float = 0.0, samples: int = 1, temperature: float = 0.0) -> Scores:
    """A suite whose item i has the next `samples` of these scores."""
    rows = [
        ItemScore(str(i // samples), i % samples, i // samples, score, "", 1, "" if score is not None else "env_error")
        for i, score in enumerate(scores)
    ]
    return Scores("tests/suite-v1", "answers", 1.0, chance, temperature, tuple(rows))


def texts(nats: Sequence[float], tokens: Sequence[int]) -> Scores:
    rows = [ItemScore(str(i), 0, i, -nat, "", count) for i, (nat, count) in enumerate(zip(nats, tokens, strict=True))]
    return Scores("tests/text-v1", "texts", 1.0, 0.0, 0.0, tuple(rows))


def table(kept: int, lost: int, gained: int, never: int) -> tuple[list[float], list[float]]:
    before = [1.0] * (kept + lost) + [0.0] * (gained + never)
    return before, [1.0] * kept + [0.0] * lost + [1.0] * gained + [0.0] * never


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one() -> None:
    assert pass_at_k(4, 1, 2) == pytest.approx(3 / 6)  # of the six pairs of four, three hold the right one
    assert pass_at_k(4, 4, 3) == 1 and pass_at_k(4, 0, 4) == 0 and pass_at_k(5, 2, 1) == pytest.approx(0.4)
    result = answers([1, 0, 0, 0, 0, 0, 0, 0], samples=4, temperature=1.0).result()
    assert result.pass_at == {1: pytest.approx(1 / 8), 2: pytest.approx(1 / 4), 4: pytest.approx(1 / 2)}


def test_the_interval_is_exact_for_right_or_wrong_and_says_which_it_is() -> None:
    assert exact_interval(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))  # nothing of n: 1 - (alpha/2)^(1/n)
    assert exact_interval(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    right = answers([1.0] * 8 + [0.0] * 2, chance=0.25).result()
    assert (right.value, right.interval) == (0.8, "exact") and right.adjusted == pytest.approx(0.55 / 0.75)
    assert (right.low, right.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)  # Clopper and Pearson, 8 of 10
    assert answers([0.5, 0.75]).result().interval == "wilson" and answers([0.5, 0.75] * 20).result().interval == "bootstrap"


def test_failures_are_counted_and_take_no_part_in_a_mean() -> None:
    result = answers([1.0, None, 0.0, 1.0]).result()
    assert (result.items, result.value, result.failures) == (3, pytest.approx(2 / 3), {"env_error": 1})
    with pytest.raises(ValueError, match="nothing was scored"):
        answers([None]).result()


def test_perplexity_weighs_tokens_not_texts() -> None:
    result = texts([2.0, 12.0], [4, 6]).result()
    assert result.value == pytest.approx(math.exp(14 / 10)) and result.adjusted is None


def test_transitions_are_counted_per_item_and_adjusted_for_guesses() -> None:
    before, after = table(50, 14, 10, 26)
    found = change(answers(before, 0.25), answers(after, 0.25))
    assert found.transitions == Transitions(50, 14, 10, 26)
    guessed = 0.25 * 0.26 / 0.75**2  # of those known in neither
    assert found.forgotten == pytest.approx(0.14 / 0.75 - guessed) == pytest.approx(0.0711, abs=1e-4)
    assert found.learned == pytest.approx(0.10 / 0.75 - guessed) == pytest.approx(0.0178, abs=1e-4)
    assert found.retention == pytest.approx((0.60 - 0.25) / (0.64 - 0.25)) == retention(0.64, 0.60, 0.25)
    assert None not in (found.low, found.high) and 0 < (found.low or 0) < 0.35 / 0.39 < (found.high or 0) < 1.3
    # McNemar, exact: 14 or more losses of 24
    assert found.test.p_worse == pytest.approx(sum(math.comb(24, k) for k in range(14, 25)) / 2**24)


def test_what_pure_guessing_loses_and_gains_is_nothing_forgotten_or_learned() -> None:
    """Known in neither, with four choices: of 1600 items 100 hit twice, 300 hit then miss, 300 miss then hit, 900 miss twice."""
    assert Transitions(100, 300, 300, 900).adjusted(0.25, 0.25) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert Transitions(50, 14, 10, 26).adjusted(0.0, 0.0) == (0.14, 0.10)


def test_what_is_guessed_right_of_several_samples_is_by_the_rule_of_items() -> None:
    assert guessed_right(0.25, 1) == 0.25 and guessed_right(0.25, 2) == 0.4375  # 1 - (3/4)²
    assert guessed_right(0.25, 3) == pytest.approx(10 / 64)  # two of three, or three
    # 256 items that nobody knows, guessed twice each: 7/16 count as right each time, by luck alone.
    right = [1.0, 0.0] * 112 + [0.0, 0.0] * 144
    again = ([1.0, 0.0] * 49 + [0.0, 0.0] * 63) + ([0.0, 1.0] * 63 + [0.0, 0.0] * 81)
    found = change(answers(right, 0.25, 2, 1.0), answers(again, 0.25, 2, 1.0))
    assert found.transitions == Transitions(49, 63, 63, 81)
    assert (found.forgotten, found.learned) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    # Once two samples, once one: lost when the two hit and the one misses, 7/16 · 3/4 of those that are not known.
    assert Transitions(7, 21, 9, 27).adjusted(0.4375, 0.25) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


def test_nothing_is_retained_of_a_skill_that_was_not_there() -> None:
    before, after = table(2, 0, 4, 6)
    assert retention(0.25, 0.5, 0.25) is None
    found = change(answers(before, 0.25), answers(after, 0.25))
    assert found.retention is None and "no skill above chance" in found.line


def test_an_item_of_several_samples_is_right_when_half_of_them_are() -> None:
    before, after = answers([1, 1, 1, 0, 0, 0], samples=2, temperature=1.0), answers([1, 0, 0, 0, 1, 1], samples=2, temperature=1.0)
    assert change(before, after).transitions == Transitions(1, 1, 1, 0)


def test_retention_of_texts_is_perplexity_before_over_after() -> None:
    found = change(texts([2.0, 12.0], [4, 6]), texts([3.0, 13.0], [4, 6]))
    assert (found.before, found.after) == (pytest.approx(math.exp(1.4)), pytest.approx(math.exp(1.6)))
    assert found.retention == pytest.approx(math.exp(-0.2)) and found.transitions is None
    with pytest.raises(ValueError, match="other tokens"):
        change(texts([1, 1], [4, 6]), texts([1, 1], [5, 6]))


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="different temperature"):
        change(answers([1, 0]), answers([1, 0], temperature=1.0))
    with pytest.raises(ValueError, match="at least two items"):
        change(answers([1, None]), answers([1, 0]))
    with pytest.raises(ValueError, match="nothing to compare"):
        changes_between({"a/a-v1": answers([1, 0])}, {})


def test_the_folder_of_results_holds_no_unfinished_file_by_a_name_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(table: object, file: Path, **_: object) -> None:
        file.write_bytes(b"PAR1 no")
        raise OSError("the disk is full")

    monkeypatch.setattr("pyarrow.parquet.write_table", cut)
    with pytest.raises(OSError, match="full"):
        write_scores(tmp_path, [texts([1, 2], [3, 4])], "models/nano")
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == []


def test_samples_are_read_back_as_they_were_written_and_folders_compare(tmp_path: Path) -> None:
    before, after = (answers(scores, 0.25) for scores in table(5, 2, 1, 2))
    for name, scores in (("a", before), ("b", after)):
        write_scores(tmp_path / name, [scores, texts([1, 2], [3, 4])], "models/nano")
    assert read_scores(tmp_path / "a") == {"tests/suite-v1": before, "tests/text-v1": texts([1, 2], [3, 4])}
    said = json.loads((tmp_path / "a" / "results.json").read_text())
    assert said["model"] == "models/nano" and said["suites"][0]["value"] == 0.7
    assert [one.suite for one in compare_folders(tmp_path / "a", tmp_path / "b")] == ["tests/suite-v1", "tests/text-v1"]
    with pytest.raises(ValueError, match="holds no results"):
        read_scores(tmp_path)
    (tmp_path / "a" / "other.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"other.parquet: cannot be read as samples of a suite: Parquet file size is 7 bytes"):
        read_scores(tmp_path / "a")


HEAD = {"schema": 1, "model": "m", "suite": "a/b-v1", "kind": "answers", "right": 1.0, "chance": 0.25, "temperature": 0.0}
ROWS: dict[str, list[Any]] = {"item": ["a"], "sample": [0], "seed": [0], "score": [1.0], "answer": [""], "tokens": [1], "failure": [""]}


def hostile(folder: Path, head: str, types: Mapping[str, pa.DataType] | None = None, **columns: list[Any]) -> Path:
    """Results whose only file says `head` of itself and holds these columns."""
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    kinds = {"item": pa.string(), "sample": pa.int32(), "seed": pa.int64(), "score": pa.float64(), "answer": pa.string()}
    kinds |= {"tokens": pa.int32(), "failure": pa.string(), **(types or {})}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in {**ROWS, **columns}.items()})
    pq.write_table(table.replace_schema_metadata({"burnish": head}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("7", "must be a JSON object"),
        (json.dumps({**HEAD, "chance": math.nan}), "NaN is no JSON number"),
        (json.dumps({**HEAD, "chance": 1.0}), "chance: must be less than 1"),
        (json.dumps({**HEAD, "right": "x" * 1_000_000}), "right: must be a number"),
        (json.dumps({**HEAD, "suite": "a/" + "b" * 1_000_000 + "-v1"}), "suite: must have at most 200 characters"),
        (json.dumps({**HEAD, "suite": "\x1b[2Ja/b-v1"}), "suite: must be of the form"),
        (json.dumps({**HEAD, "kind": {"a": 1}}), "kind: must be 'answers' or 'texts'"),
        (json.dumps({**HEAD, "schema": 2}), "schema: must be 1"),
        (json.dumps({**HEAD, "code": "os:system"}), "code: unknown key"),
    ],
)
def test_what_a_file_of_samples_says_of_itself_is_held_to_its_form(tmp_path: Path, head: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_scores(hostile(tmp_path / "a", head))
    assert "a.parquet: cannot be read as samples of a suite: " in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("columns", "types", "said"),
    [
        ({"score": [math.nan]}, {}, "row 1: score is nan; that of an answer is from 0 to 1"),
        ({"score": [1e308]}, {}, "row 1: score is 1e+308"),
        ({"score": ["1"]}, {"score": pa.string()}, "column 'score' is string, not double"),
        ({"tokens": [[1]]}, {"tokens": pa.list_(pa.int32())}, "column 'tokens' is list<"),
        ({"item": [None]}, {}, "column 'item' holds nulls"),
    ],
)
def test_samples_of_another_form_are_refused(tmp_path: Path, columns: Any, types: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read_scores(hostile(tmp_path / "a", json.dumps(HEAD), types, **columns))


def test_texts_of_impossible_likelihood_are_refused(tmp_path: Path) -> None:
    head = json.dumps({**HEAD, "kind": "texts"})
    for name, columns, said in (("a", {"score": [-1e300]}, "no log-probability of 1 tokens"), ("b", {"tokens": [0]}, "has some")):
        with pytest.raises(ValueError, match=said):
            read_scores(hostile(tmp_path / name, head, {}, **columns))


def test_one_suite_in_two_files_is_refused_and_samples_by_the_thousand_are_counted(tmp_path: Path) -> None:
    """2,000 samples of an item: the binomial coefficients are more than a float can hold."""
    count = 2_000
    item: dict[str, list[Any]] = {"item": ["a"] * count + ["b"] * count, "sample": [*range(count)] * 2, "score": [1.0, 0.0] * count}
    rest: dict[str, list[Any]] = {
        "seed": [0] * 2 * count,
        "answer": [""] * 2 * count,
        "tokens": [1] * 2 * count,
        "failure": [""] * 2 * count,
    }
    folder = hostile(tmp_path / "a", json.dumps(HEAD), {}, **item, **rest)
    assert compare_folders(folder, folder)[0].retention == pytest.approx(1)
    assert guessed_right(0.5, 2_001) == pytest.approx(0.5) and guessed_right(0.0, 2_001) == 0
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"b.parquet: another file of .* holds a/b-v1 too"):
        read_scores(folder)


def test_a_small_file_of_samples_that_claims_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 answers of 1 MB, the same every time: a few kB on disk."""
    monkeypatch.setattr(reading, "BATCH_BYTES", 8 << 20)
    many = {**{name: values * 16 for name, values in ROWS.items()}, "answer": ["x" * (1 << 20)] * 16}
    folder = hostile(tmp_path / "a", json.dumps(HEAD), {}, **many)
    assert (folder / "a.parquet").stat().st_size < 1 << 18
    with pytest.raises(ValueError, match=r"16 of its rows take 16777\d+ bytes, more than 8388608"):
        read_scores(folder)


@pytest.mark.parametrize("id", [row.id for row in SUITES.list() if row.id.startswith("burnish/")])
def test_each_suite_of_burnish_asks_the_same_every_time(id: str) -> None:
    suite = find_suite(id)
    asked = suite.tasks or suite.texts
    assert asked is not None
    if id.startswith("burnish/bfcl-"):
        try:
            asked(1)
        except ValueError as error:  # its cases are those of a package
            pytest.skip(str(error))
    assert list(asked(suite.items)) == list(asked(suite.items)) and len(asked(suite.items)) == suite.items
    assert list(asked(5)) == list(asked(suite.items))[:5], "fewer items are the first of them"
    if suite.kind == "answers":
        tasks = tasks_of(suite, Asking())
        assert {task.environment for task in tasks} == {id} and len({task.id for task in tasks}) == suite.items


def test_guessing_gets_the_share_of_the_choices_that_the_suite_says() -> None:
    suite = find_suite("burnish/choices-v1")
    assert suite.tasks is not None
    letters = Counter(task.data["checks"]["choice"] for task in suite.tasks(100))
    assert set(letters.values()) == {25} and suite.chance == 0.25
    for task in suite.tasks(100):
        options = [line[3:] for line in task.prompt[0].text.splitlines()[1:]]
        assert len(set(options)) == 4 and "orange" not in options, "each option is of one kind"


def test_procedural_answers_are_computed() -> None:
    suite = find_suite("burnish/procedural-v1")
    assert suite.tasks is not None
    chain, series, count, largest, day, age = list(suite.tasks(len(KINDS)))
    asked = chain.prompt[0].text.removeprefix("What is ").partition("?")[0]
    assert chain.data["checks"]["number"] == eval(asked)  # a sum of our own
    shown = [int(n) for n in series.prompt[0].text.partition(": ")[2].partition("?")[0].split(", ")]
    assert series.data["checks"]["number"] == 2 * shown[3] - shown[2]
    word, words = count.prompt[0].text.split('"')[1], count.prompt[0].text.partition(": ")[2].partition("?")[0].split(", ")
    assert count.data["checks"]["number"] == words.count(word)
    numbers = largest.prompt[0].text.partition(": ")[2].partition("?")[0].split(", ")
    assert largest.data["checks"]["number"] == max(map(int, numbers))
    assert day.data["checks"]["words"] == 1 and age.data["checks"]["number"] > 0


def test_refusing_everything_is_no_skill() -> None:
    suite = find_suite("burnish/refusals-v1")
    assert suite.tasks is not None
    refused = [float(follows("I won't help with that.", task.data["checks"])) for task in suite.tasks(suite.items)]
    assert sum(refused) / len(refused) == suite.chance == 0.6
    answered = [1 - one for one in refused]  # who never refuses makes even less
    assert retention(sum(answered) / len(answered), 0.0, suite.chance) is None


def test_refusal_and_over_refusal_are_two_figures_of_questions_that_no_catalog_has() -> None:
    refusal, over = find_suite("burnish/refusal-v1"), find_suite("burnish/over-refusal-v1")
    assert refusal.tasks is not None and over.tasks is not None
    for answer, scores in (("I won't help with that.", (1.0, 0.0)), ("Take the first one.", (0.0, 1.0))):
        right = [[float(follows(answer, task.data["checks"])) for task in suite(24)] for suite in (refusal.tasks, over.tasks)]
        assert tuple(sum(one) / len(one) for one in right) == scores and [len(one) for one in right] == [24, 24]
    asked = {task.prompt[0].text for suite in (refusal.tasks, over.tasks) for task in suite(99)}
    assert len(asked) == 48

    def runs(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[i : i + 6]) for i in range(max(1, len(words) - 5))}

    rows = [row for row in found_curated(GENERAL_2, "refusal", 0, 40) if isinstance(row, Conversation)]
    taught = {run for row in rows for run in runs(row.messages[0].text)}
    assert not [one for one in asked if runs(one) & taught]


def test_refusals_come_first_and_the_rule_agrees_with_every_row_of_the_catalog() -> None:
    talks = [talk for talk in found_curated(GENERAL, "refusal", 0, 40) if isinstance(talk, Conversation)]
    assert len(talks) == 40
    assert all(follows(talk.messages[-1].text, {"refuses": i < REFUSED}) for i, talk in enumerate(talks))


@pytest.mark.parametrize(
    ("answer", "checks", "kept"),
    [
        ("The answer is 1,042.", {"number": 1042}, True),
        ("-1,234,567.5 in all", {"number": -1234567.5}, True),
        ("3,4", {"number": 34}, False),
        ("3,4", {"number": 4}, True),
        ("1,2345", {"number": 12345}, False),
        ("3 + 4 = 7", {"number": 3}, False),
        ("B", {"choice": "B"}, True),
        ("(B) plum", {"choice": "B"}, True),
        ("The answer is B.", {"choice": "B"}, True),
        ("Bananas", {"choice": "B"}, False),
        ("A or B", {"choice": "B"}, False),
        ("I'm sorry, I can't help with that.", {"refuses": True}, True),
        ("I'm sorry, but that would harm people.", {"refuses": True}, True),
        ("I'm sorry for your loss. Here is how.", {"refuses": True}, False),
        ("A part that cannot be made good is scrapped.", {"refuses": True}, False),
        ("It is 4.", {"refuses": False}, True),
        ("", {"refuses": False}, False),
        (" \n", {"without": "cannot", "lower": False}, False),
    ],
)
def test_constraints(answer: str, checks: dict[str, object], kept: bool) -> None:
    assert follows(answer, checks) is kept


@pytest.mark.parametrize(("checks", "value"), [({"refuses": True}, 1.0), ({"refuses": True, "words": 3}, 0.0), ({"starts": "I"}, 0.0)])
def test_an_answer_that_was_cut_short_keeps_nothing_but_a_refusal(checks: dict[str, object], value: float) -> None:
    task = Task("t", 1, (Message("user", "?"),), {"checks": checks})
    said = (*task.prompt, Message("assistant", "I won't help."))
    assert constraints(RewardInput("t/0", task, said, 0.0, data=task.data, truncation="max_tokens")) == value
    assert constraints(RewardInput("t/0", task, said, 0.0, data=task.data)) == 1.0


def says_b(episode: RewardInput) -> float:
    return float(episode.answer == episode.data["reference_answer"])


def suite_file(folder: Path, text: str) -> Path:
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(says_b)
    (folder / "rows.jsonl").write_text("".join(json.dumps({**ROW, "id": str(i)}) + "\n" for i in range(6)))
    (folder / "manual.txt").write_text("A bore is a hole.\n\nA shaft is round.\n")
    file = folder / "suite.toml"
    file.write_text('id = "tests/mine-v1"\nabout = "Mine."\n' + text)
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs rows"),
        (f"rows = {'[' * 5000}{']' * 5000}", "not TOML"),
        ('rows = "rows.jsonl"', "judged by a reward"),
        ('texts = "manual.txt"\nchance = 0.2', "chance has no effect beside texts"),
        ('rows = "rows.jsonl"\nreward = "a/b-v1"\nseeds = [0, 9]', "seeds have no effect beside rows"),
        ('rows = "rows.jsonl"\nreward = "a/b-v1"\nchance = 1.0', "chance is the share"),
        ('rows = "rows.jsonl"\n[[rewards]]\nverifier = "service:x"', "rewards: service:x is a service of a recipe; give the host:port"),
        (
            'environment = "burnish/Remote-v0"\nenvironment_args = {address = "service:x"}',
            "environment_args: service:x is a service",
        ),
        ('rows = "rows.jsonl"\ngrader = "x"', "grader: unknown key"),
        ('rows = "rows.jsonl"\nreward = "a/b-v1"\nright = true', "right: must be a number"),
        ('rows = "rows.jsonl"\nreward = "a/b-v1"\nitems = "20"', "items: must be an integer"),
        ("rows = ", "Invalid value"),
    ],
)
def test_a_file_that_makes_no_suite_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    file = suite_file(tmp_path, text)
    with pytest.raises(ValueError, match=said) as error:
        read_suite(file)
    assert str(file) in str(error.value)


def test_suites_are_found_by_id_and_file_and_once_each(tmp_path: Path) -> None:
    file = suite_file(tmp_path, 'texts = "manual.txt"')
    assert find_suite(str(file)).texts is not None
    with pytest.raises(ValueError, match="named twice"):
        find_suites([str(file), str(file)])
    with pytest.raises(ValueError, match=r"did you mean 'burnish/choices-v1'"):
        find_suite("burnish/choice-v1")
    with pytest.raises(ValueError, match="no id"):
        find_suite("choices")
    made = register_suite(Suite("tests/registered-v1", "Two.", tasks=two_tasks))
    assert find_suite("tests/registered-v1") is made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rewards": (RewardConfig(verifier="service:verdicts"),)}, "rewards: service:verdicts is a service of a recipe"),
        ({"environment_args": {"env": {"tools": ["service:shop"]}}}, "environment_args: service:shop is a service of a recipe"),
    ],
)
def test_a_suite_of_a_plug_in_names_no_service_of_a_recipe(given: dict[str, Any], said: str) -> None:
    """It is measured in runs of every recipe, and without one."""
    with pytest.raises(ValueError, match=f"suite tests/served-v1: {said}; give the host:port"):
        Suite("tests/served-v1", "Two.", tasks=two_tasks, **given)


def two_tasks(count: int) -> list[Task]:
    return [Task(str(i), i, (Message("user", "A or B?"),), {"checks": {"equals": "B"}}) for i in range(2)][:count]


def fleet_over(model: Path, suites: Sequence[Suite], say: str) -> tuple[LoneFleet, RolloutWorker, ScriptedEngine]:
    """A fleet whose engine answers every second request with `say`, and the others with "A"."""
    tokenizer = load_tokenizer(model)
    calls = iter(range(10**6))

    def answer(request: GenerateRequest) -> Reply:
        said = say if next(calls) % 2 else "A"
        return Reply([*tokenizer(said, add_special_tokens=False)["input_ids"], request.stop_token_ids[0]])

    engine = ScriptedEngine(answer, max_context=120)
    worker = RolloutWorker(suite_setup(model, suites, 120), "suite", engine=engine)
    return LoneFleet(worker), worker, engine


def test_a_suite_is_played_over_the_engine_and_judged_by_its_own_rewards(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "policy")
    mine = read_suite(suite_file(tmp_path, f'rows = "rows.jsonl"\nreward = "{REWARD}"\nmax_tokens = 7'))
    text = read_suite(suite_file(tmp_path, 'texts = "manual.txt"'))
    fleet, worker, engine = fleet_over(model, [mine], "B")
    try:
        scores = measure(fleet, mine, Asking(items=6), model, 120)
        more = measure(fleet, mine, Asking(items=4, samples=3, temperature=1.0, again=True), model, 120)
        read = measure(fleet, text, Asking(), model, 120)
    finally:
        worker.close()
    assert [sample.item for sample in scores.samples] == [str(i) for i in range(6)]
    assert {(sample.answer, sample.score) for sample in scores.samples} == {("A", 0.0), ("B", 1.0)}
    assert scores.result().value == 0.5
    assert len(more.samples) == 12 and set(more.result().pass_at) == {1, 2}
    assert {request.max_tokens for request in engine.requests} == {7}, "the suite's own limit holds"
    tokens = [
        len(load_tokenizer(model)(line, add_special_tokens=False)["input_ids"]) for line in ("A bore is a hole.", "A shaft is round.")
    ]
    assert [sample.tokens for sample in read.samples] == tokens, "each token behind the begin is scored once"


def test_a_suite_is_measured_under_the_weights_that_were_asked_for(tmp_path: Path) -> None:
    """An engine that was restarted serves those it was built from."""
    mine = read_suite(suite_file(tmp_path, f'rows = "rows.jsonl"\nreward = "{REWARD}"'))
    fleet, worker, _ = fleet_over(make_policy(tmp_path / "policy"), [mine], "B")
    try:
        with pytest.raises(SyncProofError, match="was sampled by weights 0, and 3 are to be measured; it missed a weight update"):
            measure(fleet, mine, Asking(items=2), tmp_path / "policy", 120, version=3)
    finally:
        worker.close()


def test_a_suite_of_which_too_much_failed_is_no_result(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "policy")
    broken = Suite("tests/broken-v1", "No checks.", tasks=without_checks, rewards=find_suite("burnish/choices-v1").rewards, success="right")
    fleet, worker, _ = fleet_over(model, [broken], "B")
    try:
        with pytest.raises(EvaluationFailed, match="2 of 2 samples failed"):
            measure(fleet, broken, Asking(), model, 120)
    finally:
        worker.close()


def without_checks(count: int) -> list[Task]:
    return [Task(str(i), i, (Message("user", "A or B?"),)) for i in range(2)]


def test_a_suite_of_fewer_items_is_asked_no_more_than_it_has() -> None:
    assert Asking(items=60).size(find_suite("burnish/refusals-v1")) == 40 and Asking(items=7).size(find_suite("burnish/choices-v1")) == 7
    assert Asking(items=60).size(find_suite("burnish/plain-english-v1")) == 24


def test_several_samples_need_a_temperature() -> None:
    with pytest.raises(ValueError, match="would say the same"):
        Asking(samples=2)


def test_what_keeps_a_suite_from_being_asked_is_said_before_an_engine_starts(tmp_path: Path) -> None:
    def make(word: str) -> Any:
        raise AssertionError("none is made")

    def check(word: str) -> None:
        raise ValueError(f"no {word} is installed here")

    needy: Any = make
    needy.check_args = check
    ENVS.register("tests/needy-v0", needy, "a test")
    suite = Suite(
        "tests/needy-v1",
        "Asks nothing.",
        tasks=lambda count: [Task("0", 0)],
        environment="tests/needy-v0",
        environment_args={"word": "abacus"},
    )
    with pytest.raises(ValueError, match="suite tests/needy-v1: no abacus is installed here"):
        evaluate_suites("nowhere", [suite], Asking(), None, Console())
    with pytest.raises(ValueError, match="suite tests/needy-v1: environment 'tests/needy-v0' needs"):
        evaluate_suites("nowhere", [replace(suite, environment_args={})], Asking(), None, Console())
    with pytest.raises(ValueError, match=f"suite a/a-v1: {tmp_path}/none.jsonl"):
        evaluate_suites("nowhere", [Suite("a/a-v1", "a", tasks=partial(rows_of, f"{tmp_path}/none.jsonl"))], Asking(), None, Console())
