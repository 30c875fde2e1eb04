"""A run that an exception ends keeps what had finished: transcripts, failures in the books, and a word of where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.integration import scripted_run

from burnish.inspector.runs import read_run_transcripts
from burnish.rewards.plugin import REWARDS, reward
from burnish.rewards.types import RewardInput
from burnish.run import pipeline

pytestmark = pytest.mark.integration

BREAKS = "tests/breaks-after-a-while-v1"
RECIPE = """
name = "broken"
model = "{model}"
environment = "burnish/Arithmetic-v0"
environment_weight = 0.0
reward_function = "{reward}"
success = "breaks-after-a-while"
rft = {{ steps = 5, groups_per_step = 2, group_size = 3, max_refills = 1, lr = 1e-3, checkpoint_every = 2 }}
rollout = {{ max_tokens_per_turn = 6, retries = 0 }}
engine = {{ max_context = 128 }}
learner = {{ threads = 1 }}
evaluation = {{ tasks = 4, before = {before}, after = false, greedy = false }}
"""


class Breaks:
    """Scores so many episodes, differently, and has lost its gauge then."""

    scores = left = 0

    def __call__(self, episode: RewardInput) -> float:
        self.left -= 1
        if self.left < 0:
            raise KeyError("gauge")
        return (self.left * 7 % 5) / 5


breaks = Breaks()


def breaks_after_a_while(episode: RewardInput) -> float:
    return breaks(episode)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts in this process in the place of Ray's, for this test alone."""
    import ray

    for name in ("parts_of", "session_over", "dashboard_url", "session_logs"):
        monkeypatch.setattr(pipeline, name, getattr(pipeline, name, None), raising=False)  # to be as it was, afterwards
    monkeypatch.setattr(ray, "get", ray.get)
    scripted_run.local_parts()
    if REWARDS.loaded(BREAKS) is None:
        reward(BREAKS)(breaks_after_a_while)


@pytest.mark.parametrize(("where", "scored", "step"), [("train", 14, 4), ("evaluation", 0, 0)])
def test_what_had_finished_is_kept(where: str, scored: int, step: int, local: None, tiny_model: Path, tmp_path: Path) -> None:
    breaks.left = scored
    before = "true" if where == "evaluation" else "false"
    (tmp_path / "run.toml").write_text(RECIPE.format(model=tiny_model, reward=BREAKS, before=before))
    run = tmp_path / "run"
    with pytest.raises(Exception, match=r"episodes .*failed") as caught:
        scripted_run.play(tmp_path / "run.toml", run)
    told = list(read_run_transcripts(run))
    last = [one for one in told if one.step == step]
    failed = [one.failure.kind for one in last if one.failure]
    assert failed and {*failed} == {"reward_error"}, "they show why"
    (note,) = caught.value.__notes__
    assert note == f"the transcripts of {len(last)} episodes are kept: burnish rollouts {run}"
    if where == "train":
        books = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        everywhere = sum(one.failure is not None for one in told)
        assert (books[-1]["step"], books[-1]["masked"]) == (4, {"reward_error": everywhere}) and everywhere > len(failed)
        assert len([one for one in told if one.step == 1]) == 6, "those of the steps before are there too"
