"""The learning-rate range test: what a curve of losses says, what the learner is asked for, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.unit.scripted import ScriptedLearner
from typer.testing import CliRunner

from burnish.cli.find_rate import page, row_of
from burnish.cli.main import app
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.run.rate_range import supervised_phase
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.learner.config import OptimizerConfig
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.phases.rate_range import RateRange, RateTried, range_test, ranged, rates
from burnish.trainer.phases.sft import SFTConfig

pytestmark = pytest.mark.unit

TABLE = SFTConfig(steps=100, batch=2, lr=3e-4, warmup_steps=7, generate="m:f")


def curve(start: float, *losses: float) -> RateRange:
    return RateRange(start, tuple(RateTried(10.0**-number, loss) for number, loss in zip(range(len(losses), 0, -1), losses, strict=True)))


def test_rates_grow_by_the_same_factor() -> None:
    assert rates(1e-4, 1e-2, 3) == pytest.approx([1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize(
    ("low", "high", "steps", "message"),
    [
        (0.0, 0.1, 9, "above 0 and at most 1; 0 to 0.1 do not"),
        (0.1, 0.1, 9, "from a low one to a high one"),
        (0.1, 2.0, 9, "at most 1"),
        (math.nan, 0.1, 9, "nan to 0.1 do not"),
        (1e-4, 0.1, 1, "1 steps are too few"),
    ],
)
def test_rates_that_lead_nowhere_are_refused(low: float, high: float, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(low, high, steps)


def test_a_rate_breaks_it_when_half_of_what_was_learned_is_lost_again() -> None:
    learned = curve(3.0, 2.9, 1.0)  # 2.0 were learned: above 2.0 it is broken
    assert learned.broke is None and learned.suggested is None
    assert curve(3.0, 2.9, 1.0, 2.0).broke is None
    broken = curve(3.0, 2.9, 1.0, 2.01)
    assert broken.broke == RateTried(0.1, 2.01)
    assert broken.lowest == RateTried(1e-2, 1.0)
    assert broken.suggested == pytest.approx(1e-2)


def test_a_loss_that_moves_by_itself_breaks_nothing_and_one_that_is_not_finite_does() -> None:
    assert curve(3.0, 2.99, 3.05).broke is None  # above the lowest by more than half of 0.01, and by less than a tenth of 3
    assert curve(3.0, 2.9, math.nan).broke is not None
    assert curve(3.0, math.inf).lowest == RateTried(0.0, 3.0)


def test_nothing_is_suggested_where_nothing_was_learned_before_it_broke() -> None:
    found = curve(3.0, 4.0)
    assert found.broke is not None and found.suggested is None


class Losing(ScriptedLearner):
    """Whose losses without a gradient are given, and which notes its updates. broken: the update that is not finite."""

    def __init__(self, losses: Sequence[float], broken: int | None = None) -> None:
        super().__init__()
        self.losses, self.not_finite = list(losses), broken
        self.scored: list[list[int]] = []
        self.trained: list[list[int]] = []
        self.scales: list[float] = []

    def forward_backward(self, batch: TokenBatch, objective: object) -> Measured:
        self.trained.append(batch.token_ids.tolist())
        return Measured(np.zeros(1, np.float32), np.zeros(1, np.float32))

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        self.scored.append(batch.token_ids.tolist())
        return Measured(np.zeros(1, np.float32), np.zeros(1, np.float32), {}, {"loss": self.losses.pop(0)})

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        self.scales.append(scale)
        if len(self.scales) == self.not_finite:
            raise FloatingPointError("not applied")
        return {}


class Numbered:
    """Whose step `n` has the tokens n and n + 100."""

    uses = ()

    def __init__(self, held_out: Sequence[SupervisedExample] = ()) -> None:
        self.held_out = held_out

    def examples(self, step: int) -> list[SupervisedExample]:
        return [example(step), example(step + 100)]

    def metrics(self, step: int, examples: Sequence[SupervisedExample]) -> dict[str, float]:
        return {}

    def probe(self) -> list[np.ndarray]:
        return []

    def ending_lines(self, phase: str, steps: int) -> list[str]:
        return []


def example(token: int) -> SupervisedExample:
    return SupervisedExample(np.array([token, token], np.int32), np.array([False, True]))


def test_every_update_has_its_rate_and_the_loss_is_of_examples_that_none_of_them_saw() -> None:
    learner = Losing([3.0, 2.0, 1.0, 9.0])
    *_, found = range_test(learner, TABLE, Numbered(), rates(1e-3, 1.0, 4))  # type: ignore[arg-type]
    assert learner.scales == pytest.approx([1e-3, 1e-2, 0.1])
    assert learner.trained == [[0, 0, 100, 100], [1, 1, 101, 101], [2, 2, 102, 102]]
    assert learner.scored == [[4, 4, 104, 104]] * 4
    assert (found.start, [one.loss for one in found.tried]) == (3.0, [2.0, 1.0, 9.0])
    assert found.broke is not None and found.broke.rate == pytest.approx(0.1)


def test_held_out_rows_are_measured_where_there_are_some_a_batch_of_them() -> None:
    learner = Losing([3.0, 2.0, 1.0])
    list(range_test(learner, TABLE, Numbered([example(7), example(8), example(9)]), rates(1e-3, 1.0, 2)))  # type: ignore[arg-type]
    assert learner.scored == [[7, 7, 8, 8]] * 3


def test_it_says_when_what_it_measures_was_trained_too() -> None:
    twice = Numbered([example(1)])  # a held-out row that is among the rows
    *found, last = range_test(Losing([3.0, 2.0, 1.9, 1.8]), TABLE, twice, rates(1e-3, 1.0, 3))  # type: ignore[arg-type]
    assert [one.trained_too for one in (*found, last)] == [False, False, True, True]
    assert next(page("sft.lr", 3e-4, last)) == (
        "sft.lr: the loss on examples of which some were trained too, since there are too few, 3.000 before the first update"
    )
    assert row_of("sft", last)["trained_too"] is True


def test_an_update_that_is_not_finite_ends_it() -> None:
    learner = Losing([3.0, 2.0], broken=2)
    *_, found = range_test(learner, TABLE, Numbered(), rates(1e-3, 1.0, 4))  # type: ignore[arg-type]
    assert len(found.tried) == 2 and math.isnan(found.tried[-1].loss)
    assert found.broke == found.tried[-1]


def test_the_optimizer_is_the_phases_at_the_highest_rate_all_along() -> None:
    optimizer = ranged(OptimizerConfig(weight_decay=0.1), TABLE, 0.5)
    assert optimizer == OptimizerConfig(weight_decay=0.1, lr=0.5)


def test_the_page_names_the_key_and_what_broke_it() -> None:
    lines = list(page("sft.lr", 3e-4, curve(3.0, 2.9, 1.0, 2.01)))
    assert [line for line in lines if line.endswith("lowest")] == ["   1.0e-02    1.000  #############  lowest"]
    assert lines[-2:] == ["1.0e-01 broke it; a tenth of that is a rate to begin with (the recipe has 0.0003):", "  --set sft.lr=0.01"]
    assert list(page("sft.lr", 3e-4, curve(3.0, 2.9)))[-1] == "no rate broke it; go on to higher ones with --high, above 0.1"
    assert list(page("sft.lr", 3e-4, curve(3.0, math.nan)))[-1].startswith("nothing was learned before 1.0e-01 broke it")
    assert len(list(page("sft.lr", 3e-4, curve(3.0, *([2.0] * 100))))) < 30
    assert row_of("sft", curve(3.0, math.nan))["tried"] == [{"rate": 0.1, "loss": None}]


WHAT = {"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0", "platform": "cpu"}


def test_the_first_supervised_phase_is_taken_or_the_one_that_is_named() -> None:
    made = {"steps": 4, "generate": "m:f"}
    listed = [{"kind": "rft"}, {"kind": "sft", **made}, {"kind": "cpt", "name": "more", **made}]
    run = resolve(config_from_data({**WHAT, "phases": listed}))
    assert [supervised_phase(run, name).name for name in (None, "more")] == ["sft", "more"]
    with pytest.raises(ValueError, match=r"phase 'rft' is not supervised: .* supervised are: sft, more"):
        supervised_phase(run, "rft")
    with pytest.raises(ValueError, match=r"phase 'stf' is not in the recipe; supervised are: sft, more"):
        supervised_phase(run, "stf")
    with pytest.raises(ValueError, match="no phase of this recipe is supervised"):
        supervised_phase(resolve(config_from_data({**WHAT, "rft": {}})), None)


RECIPE = """
name = "tiny"
model = "{model}"
environment = "burnish/Arithmetic-v0"
sft = {{ steps = 3, batch = 4, data = "{rows}" }}
engine = {{ max_context = 128 }}
learner = {{ threads = 1 }}
"""


def test_the_command_finds_a_rate_for_a_real_model(tmp_path: Path) -> None:
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=128)
    new_model(["what is two plus two? it is four, I believe."] * 9, tmp_path / "model", size)
    rows = tmp_path / "rows.jsonl"
    chats = [{"messages": [{"role": "user", "content": f"{a} + 1"}, {"role": "assistant", "content": str(a + 1)}]} for a in range(40)]
    rows.write_text("\n".join(map(json.dumps, chats)))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(model=tmp_path / "model", rows=rows))
    arguments = ["find-rate", str(recipe), "--low", "1e-4", "--high", "1.0", "--steps", "24"]
    said = CliRunner().invoke(app, [*arguments, "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["phase"] == "sft" and found["start"] == pytest.approx(math.log(280), rel=0.1)
    assert 1e-3 < found["lowest"] < 0.5
    assert found["broke"] is None or found["suggested"] == pytest.approx(found["broke"] / 10, rel=0.06)
    refused = CliRunner().invoke(app, [*arguments, "--phase", "rft"])
    assert refused.exit_code != 0 and "is not in the recipe" in refused.output
