"""The inspection world: rules worked out by hand, balanced verdicts, imperfect logs, equal histories."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from burnish.envs.builtin.inspection import corpus, wording
from burnish.envs.builtin.inspection.inspectors import EXPERT, Habits, inspect
from burnish.envs.builtin.inspection.parts import LEVELS, REASONS, VERDICTS, Feature, Part, make_part, measured_deviation
from burnish.envs.builtin.inspection.shop_floor import ShopFloor
from burnish.envs.contract import make_env
from burnish.envs.types import Message, Task
from burnish.recipe.load import load_config
from burnish.rewards.builtin.inspection import verdict
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

ID = "burnish/QualityInspection-v0"


@pytest.mark.parametrize(
    ("name", "deviation", "expected"),
    [
        ("bore", 20, "pass"),
        ("bore", -20, "pass"),
        ("bore", 21, "scrap"),
        ("bore", -21, "rework"),
        ("shaft", 21, "rework"),
        ("shaft", -21, "scrap"),
    ],
)
def test_material_can_be_removed_but_not_added(name: str, deviation: int, expected: str) -> None:
    assert Feature(name, 25_000, 20, deviation).verdict == expected


def test_one_lost_feature_scraps_the_part_and_is_the_reason() -> None:
    part = Part(1, 17, (Feature("shaft", 9_000, 20, 30), Feature("bore", 25_000, 20, 30)))
    assert (part.verdict, part.reasons) == ("scrap", ("oversize",))


def test_a_good_part_is_within_its_limits() -> None:
    assert Part(1, 17, (Feature("bore", 25_000, 20, 3),)).reasons == ("within",)


def test_verdicts_are_balanced_so_that_no_constant_policy_does_well() -> None:
    counts = Counter(make_part(seed, 0).verdict for seed in range(3000))
    assert all(900 < counts[v] < 1100 for v in VERDICTS)


def test_the_expert_is_right_at_every_level_without_noise() -> None:
    for level in (0, 1):
        for seed in range(100):
            part = make_part(seed, level)
            given = wording.parse_verdict(inspect(seed, level, EXPERT)[-1].text)
            assert given is not None and given[0] == part.verdict and given[1] in part.reasons


def test_the_historical_inspector_errs_and_over_measures_at_the_set_rates() -> None:
    logs = [inspect(seed, 0, Habits(error=0.4, repeat=0.3, thorough=1.0)) for seed in range(1000)]
    given = [wording.parse_verdict(log[-1].text) for log in logs]
    wrong = sum(verdict is None or verdict[0] != make_part(seed, 0).verdict for seed, verdict in enumerate(given))
    calls = sum(message.role == "tool" for log in logs for message in log)
    assert 350 < wrong < 450
    assert calls / len(logs) == pytest.approx(2 / (1 - 0.3), abs=0.15)  # each of two features: 1 + 0.3 + 0.09 + …


def test_an_inspector_who_takes_notes_reads_rightly_and_errs_in_the_verdict() -> None:
    habits, silent = Habits(error=0.4, repeat=0.3, thorough=1.0, notes=True), Habits(error=0.4, repeat=0.3, thorough=1.0)
    for seed in range(200):
        part, messages, plain = make_part(seed, 0), inspect(seed, 0, habits), inspect(seed, 0, silent)
        for before, message, same in zip(messages[:-1], messages[1:], plain[1:], strict=True):
            if before.role == "tool":
                name, _, _ = before.text.partition(":")
                feature = part.feature(name)
                assert feature is not None and message.text == f"{name} {feature.reason}\n{same.text}"
            else:
                assert message == same
        assert wording.parse_verdict(messages[-1].text) == wording.parse_verdict(plain[-1].text)


def test_notes_come_before_calls_as_thinking_aloud() -> None:
    env, part = make_env(ID, level=0), make_part(7, 0)
    env.reset(seed=7, options={"task": Task("t", 7), "episode_id": "t/0"})
    said = [message.text for message in inspect(7, 0, Habits(notes=True)) if message.role == "assistant"]
    *_, terminated, _, info = [env.step(text) for text in said][-1]
    assert terminated and info["data"]["verdict"] == part.verdict and info["metrics"]["tool_calls"] == 2.0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" Verdict: scrap;reason: undersize. ", ("scrap", "undersize")),
        ("rib undersize; flange within; verdict: scrap; reason: undersize", ("scrap", "undersize")),
        ("The rib is small.\nverdict: rework; reason: oversize", ("rework", "oversize")),
        ("verdict: pass; reason: within; verdict: scrap; reason: undersize", None),
        ("verdict: pass; reason: within, I think", None),
        ("my verdict: pass; reason: within", None),
        ("verdict: good; reason: within", None),
        ("", None),
    ],
)
def test_one_verdict_is_read_at_the_end_of_an_answer(text: str, read: tuple[str, str] | None) -> None:
    assert wording.parse_verdict(text) == read


def test_noisy_measurements_depend_on_the_history_alone() -> None:
    part = make_part(5, 2)
    feature, noise = part.features[0], LEVELS[2].noise
    first, second = measured_deviation(part, feature, 0, noise), measured_deviation(part, feature, 1, noise)
    assert first == measured_deviation(part, feature, 0, noise)
    assert {first, second} != {feature.deviation_um}


def test_the_shop_floor_counts_measurements_per_inspection(tmp_path) -> None:
    floor = ShopFloor(tmp_path / "floor.sqlite")
    part = floor.part(5, 2)
    assert part == make_part(5, 2)
    feature = part.features[0]
    a = [floor.measure("a", part, feature, 2) for _ in range(3)]
    b = [floor.measure("b", part, feature, 2) for _ in range(3)]
    assert a == b
    assert floor.measurements("a") == 3
    floor.close()
    assert ShopFloor(tmp_path / "floor.sqlite").measurements("a") == 3


def test_a_whole_inspection_with_local_tools() -> None:
    env = make_env(ID, level=0)
    part = make_part(3, 0)
    messages, info = env.reset(seed=3, options={"task": Task("t", 3), "episode_id": "t/0"})
    assert messages[-1].text == wording.request(part)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["measure", "spec"]
    feature = part.features[0]
    answer, reward, terminated, _, info = env.step(f'measure({part.number}, "{feature.name}")')
    assert answer[0].text == f"{feature.name}: deviation {feature.deviation_um:+d}, limit {feature.limit_um}"
    assert (reward, terminated, info["metrics"]["tool_calls"]) == (0.0, False, 1.0)
    answer, *_ = env.step(f'measure({(part.number + 1) % 10}, "{feature.name}")')
    assert "not on the bench" in answer[0].text
    answer, _, terminated, _, _ = env.step("I think it is fine")
    assert not terminated and answer[0].text == wording.VERDICT_HELP
    answer, reward, terminated, _, info = env.step("verdict: pass; reason: within")
    assert (answer, reward, terminated) == ((), 0.0, True)
    assert info["data"]["verdict"] == "pass" and info["metrics"]["cost"] == 1.0


@pytest.mark.parametrize(
    ("answer", "score", "label", "predicted"),
    [
        ("verdict: {verdict}; reason: {reason}", 1.0, 1.0, "{verdict}"),
        ("verdict: {verdict}; reason: {wrong}", 0.5, 1.0, "{verdict}"),
        ("let me think", 0.0, 0.0, "no verdict"),
    ],
)
def test_the_verifier_wants_the_verdict_and_its_reason(answer: str, score: float, label: float, predicted: str) -> None:
    part = next(p for p in (make_part(seed, 0) for seed in range(100)) if len(p.reasons) == 1 and p.verdict != "pass")
    wrong = next(reason for reason in REASONS if reason not in part.reasons)
    words = {"verdict": part.verdict, "reason": part.reasons[0], "wrong": wrong}
    messages = (Message("user", "…"), Message("assistant", answer.format(**words)))
    given = verdict.function(RewardInput("t/0", Task("t", part.seed), messages, 0.0, data={"level": 0}))
    assert (given.value, given.parts["label"]) == (score, label)
    assert given.labels == {"expected": part.verdict, "predicted": predicted.format(**words)}


def test_training_text_never_shows_a_held_out_part(monkeypatch) -> None:
    seen: list[int] = []

    def watched(seed: int, level: int) -> Part:
        seen.append(seed)
        return make_part(seed, level)

    monkeypatch.setattr(corpus, "make_part", watched)
    list(corpus.documents(0, 200))
    assert max(seen) < corpus.TRAIN_SEEDS


@pytest.mark.parametrize("name", ["nano", "smollm2"])
def test_logs_longer_than_a_rollout_are_fewer_than_the_demos_recipes_leave_out(name: str) -> None:
    """One run seed in three has a log that no context of the demo holds: without `max_rejects` it could not begin."""
    table = load_config(Path(f"recipes/{name}-inspection.toml")).sft
    assert table is not None
    examples = table.supervised_rows.examples
    turns = [[(len(log) - 1) // 2 for log in corpus.logs(seed, examples, **table.args)] for seed in (11, 14_000_017)]
    assert max(max(one) for one in turns) > 8
    assert all(sum(count > 7 for count in one) <= table.max_rejects for one in turns)


@pytest.mark.parametrize("text", ["\n" * 300_000, "verdict: pass; reason: within" + " " * 300_000 + "x", ";  " * 100_000])
def test_no_answer_takes_the_square_of_its_length_to_read(text: str) -> None:
    started = time.process_time()
    assert wording.parse_verdict(text) is None
    assert time.process_time() - started < 20, "it takes milliseconds; one look at each pair of characters takes minutes"
    assert wording.parse_verdict("It fits.\n\n  Verdict: pass; reason: within .  \n") == ("pass", "within")
