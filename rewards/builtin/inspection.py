"""The verifier of `burnish/QualityInspection-v0`: `burnish serve-verifier burnish.rewards.builtin.inspection:verdict`."""

from __future__ import annotations

from ...envs.builtin.inspection.parts import make_part
from ...envs.builtin.inspection.wording import parse_verdict
from ..remote.service import verifier
from ..types import RewardInput, Score

NO_VERDICT = "no verdict"


@verifier("burnish/inspection-verdict-v1")
def verdict(request: RewardInput) -> Score:
    """1 when the verdict is right and its reason justifies it, 0.5 when only the verdict is right, else 0.

    parts: `correct` (verdict and reason), `label` (the verdict alone), each 0 or 1. labels: the verdict expected and given. The part is
    made again from its seed, so nothing the policy or the environment says decides what is right.
    """
    part = make_part(request.task.seed, int(request.data["level"]))
    given = parse_verdict(request.answer) if request.answer is not None else None
    label = given is not None and given[0] == part.verdict
    correct = label and given is not None and given[1] in part.reasons
    labels = {"expected": part.verdict, "predicted": given[0] if given else NO_VERDICT}
    return Score((label + correct) / 2, {"correct": float(correct), "label": float(label)}, labels)
