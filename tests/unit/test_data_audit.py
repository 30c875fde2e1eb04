"""What data holds before it is trained on: forms by content, unfit rows by place, duplicates, and what evaluations ask."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.envs.types import Message
from burnish.trainer.data.audit import Checked, check, checked_rows, stats
from burnish.trainer.data.forms import Conversation, as_task_row, form_of, read_conversation, read_preference
from burnish.trainer.data.overlap import Duplicate, band_width, contaminated, duplicates, minhash, words_of
from burnish.trainer.data.sources import Reject

pytestmark = pytest.mark.unit

ASKED = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "4"}
VERL = {
    "data_source": "gsm8k",
    "prompt": [ASKED],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 3},
}


def rows(tmp_path: Path, *values: object, name: str = "a.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
    return str(file)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"text": "x"}, "document"),
        ({"messages": [ASKED, SAID]}, "conversation"),
        ({"messages": [ASKED, SAID, ASKED]}, "conversation"),
        ({"messages": [ASKED], "reference_answer": "4"}, "task"),
        ({"prompt": "2 + 2?", "completion": "4"}, "answer"),
        ({"prompt": "2 + 2?", "response": "4"}, "answer"),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "preference"),
        (VERL, "verl task"),
        ({"prompt": "2 + 2?"}, None),
        ({"messages": 7}, "task"),
        ({}, None),
    ],
)
def test_a_row_is_told_by_its_keys(row: dict[str, Any], form: str | None) -> None:
    assert form_of(row) == form


def test_a_question_with_its_answer_is_a_conversation() -> None:
    row = {"system": "Be brief.", "prompt": "2 + 2?", "response": "4", "id": 7}
    assert read_conversation(row) == Conversation((Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4")))
    assert read_conversation({"prompt": [ASKED], "completion": [SAID]}).messages[1].text == "4"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "", "response": "4"}, "prompt: must not be empty"),
        ({"prompt": "x", "response": ""}, "response: must not be empty"),
        ({"prompt": "x", "response": 4}, "response: must be a text or a list of messages, not int"),
        ({"prompt": "x", "response": "a", "completion": "b"}, "completion: is another name of response"),
        ({"prompt": "x", "response": "a", "score": 1}, "score is not read"),
        ({"chosen": [SAID], "rejected": [SAID]}, "chosen: the row is a preference pair"),
        (VERL, "prompt: the row is a task, which has no answer to learn from"),
    ],
)
def test_what_is_no_conversation(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_conversation(row)


def test_a_preference_may_repeat_its_prompt_in_both_answers() -> None:
    other = {"role": "assistant", "content": "5"}
    plain = read_preference({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"})
    assert read_preference({"chosen": [ASKED, SAID], "rejected": [ASKED, other]}) == plain
    assert (plain.prompt, plain.chosen) == ((Message("user", "2 + 2?"),), (Message("assistant", "4"),))
    for row, says in (
        ({"prompt": "q", "chosen": "a"}, "rejected: must be a text or a list"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected: is the same as chosen"),
        ({"chosen": [SAID], "rejected": [other]}, "prompt: there is none"),
        ({"chosen": [ASKED, SAID, ASKED], "rejected": [ASKED, other]}, "chosen: must end with an answer"),
    ):
        with pytest.raises(ValueError, match=says):
            read_preference(row)


def test_a_row_of_verl_is_a_task_with_its_answer() -> None:
    assert as_task_row(VERL) == {
        "data_source": "gsm8k",
        "ability": "math",
        "extra_info": {"index": 3},
        "messages": [ASKED],
        "reference_answer": "4",
        "reward_model": {"style": "rule"},
    }
    with pytest.raises(ValueError, match="reward_model: must read"):
        as_task_row({"data_source": "x", "prompt": [ASKED], "reward_model": {"style": "rule"}})


def test_every_row_is_counted_and_every_unfit_one_named(tmp_path: Path) -> None:
    place = rows(tmp_path, {"text": "x"}, {"foo": 1}, {"messages": [ASKED, SAID]}, {"messages": [{"role": "boss"}]}, VERL)
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    report = check([place, str(tmp_path / "b.txt")], rejects=tmp_path / "rejects.jsonl")
    assert dict(report.rows) == {"document": 3, "conversation": 1, "verl task": 1} and report.rejected == 2
    written = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"], row["field"]) for row in written] == [(place, 2, ""), (place, 4, "messages[0]")]
    assert check([place], "sft").rejected == 4 and check([place], "tasks").rejected == 4 and check([place], "cpt").rejected == 3
    with pytest.raises(FileExistsError):
        check([place], rejects=tmp_path / "rejects.jsonl")
    for _ in range(2):  # nothing is left of a check that failed, so it can be tried again
        with pytest.raises(ValueError, match=r"gone\.jsonl: there is no such file"):
            check([place, str(tmp_path / "gone.jsonl")], rejects=tmp_path / "more.jsonl")
    assert not (tmp_path / "more.jsonl").exists()


def test_sizes_by_hand(tmp_path: Path) -> None:
    found = stats(rows(tmp_path, {"text": "four"}, {"messages": [ASKED, SAID]}, 7))
    assert (found.rows, found.rejected, found.characters) == (2, 1, [4, len("2 + 2?\n4")])


def said(*texts: str) -> list[Checked]:
    found = []
    for i, text in enumerate(texts):
        row = {"messages": [{"role": "user", "content": text}, SAID]}
        found.append(Checked("conversation", read_conversation(row), f"a:{i + 1}", row))
    return found


def test_exact_duplicates_differ_in_nothing_but_case_space_and_points() -> None:
    assert words_of("Is 3 > 2?  YES.") == ["is", "3", "2", "yes"]
    first, second, third, fourth = duplicates(said("Is it here?", "is  it HERE", "It is here.", "Is it here?"))
    assert second == Duplicate("a:2", "a:1", "exact") and fourth == Duplicate("a:4", "a:1", "exact")
    assert isinstance(first, Checked) and isinstance(third, Checked)


def test_near_duplicates_are_found_and_far_ones_are_not() -> None:
    """One word of forty is another: 39 of 41 runs of three words are shared but the three around it, a Jaccard similarity of 36 / 42."""
    words = [f"word{i}" for i in range(40)]
    changed, other = [*words[:20], "other", *words[21:]], [f"else{i}" for i in range(40)]
    texts = [" ".join(words), " ".join(changed), " ".join(other)]
    kept, near, far = duplicates(said(*texts), 0.6)
    assert isinstance(kept, Checked) and isinstance(far, Checked) and isinstance(near, Duplicate)
    assert (near.of, near.kind) == ("a:1", "near") and near.similarity == pytest.approx(36 / 42, abs=0.12)
    assert all(isinstance(row, Checked) for row in duplicates(said(*texts), 0.99))
    with pytest.raises(ValueError, match="give one above 0 and up to 1"):
        list(duplicates(said("a"), 1.5))


def test_minhash_estimates_the_share_of_runs_in_common() -> None:
    """60 pairs of rows of which 30 of 90 runs are shared: the mean estimate lies within three standard errors of a third."""
    estimates = []
    for pair in range(60):
        shared = [f"s{pair}x{i}" for i in range(32)]
        one, other = ([*shared, *(f"{side}{pair}x{i}" for i in range(30))] for side in "ab")
        estimates.append(float(np.mean(minhash(one) == minhash(other))))
    assert np.mean(estimates) == pytest.approx(1 / 3, abs=3 * np.sqrt(2 / 9 / 128 / 60))


def test_a_long_row_is_hashed_piece_by_piece() -> None:
    """Of 200,000 words all hashes of all runs were held: 240 MB. What is least in both halves of a row is least in the row."""
    words = [f"w{i}" for i in range(50_000)]
    tracemalloc.start()
    whole = minhash(words)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert np.array_equal(whole, np.minimum(minhash(words[:20_001]), minhash(words[19_999:])))


@pytest.mark.parametrize(("threshold", "width"), [(0.8, 6), (0.5, 3), (0.95, 16), (1.0, 128), (0.01, 1)])
def test_bands_are_as_wide_as_finds_nearly_all(threshold: float, width: int) -> None:
    """At 0.8, 1 - (1 - 0.8^6)^21 = 0.998, and 1 - (1 - 0.8^7)^18 = 0.986 is too little."""
    assert band_width(threshold) == width


def test_what_an_evaluation_asks_is_found_in_what_is_trained_on() -> None:
    """Of the ten words of the question there are six runs of five; training holds its first seven words, three runs of them."""
    question = "which bore of part nine is beyond its upper limit"
    trained = said("unrelated text that goes on for a while", "I asked which bore of part nine is too large", question[:4])
    (found,) = contaminated(trained, said(question), n=5)
    assert (found.where, found.trained, found.share) == ("a:1", "a:2", pytest.approx(2 / 6))
    assert contaminated(trained, said(question), n=9) == []
    assert [one.share for one in contaminated(said(question), said(question, "unseen words entirely here"), n=5)] == [1.0]
    assert [one.share for one in contaminated(said("is part nine here"), said("Part nine"), n=13)] == [1.0], "shorter than a run"


def test_the_rows_of_a_place_are_read_once_in_order(tmp_path: Path) -> None:
    place = rows(tmp_path, {"text": "x"}, [1])
    good, bad = checked_rows([place])
    assert isinstance(good, Checked) and good.text == good.asked == "x"
    assert bad == Reject(place, 2, "", "must be a JSON object, not list")
