"""Does a saved model score as the learner does? A checkpoint that lost a tensor must not pass for what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ...envs.types import Int32
from ..batch import plain_batch

if TYPE_CHECKING:
    from .learner import Learner

PROBE_TOKENS: Final = 64
BOUNDS: Final = {"float32": 1e-3}
"""Largest difference between both losses, in nats per token, by the learner's dtype. In float32 equal weights agree to 1e-5."""
ROUGH_BOUND: Final = 0.05
"""The same for a learner that rounds more than float32 does; the saved model is scored in float32."""


class SavedModelError(RuntimeError):
    """A model folder does not hold the policy that it was written from."""


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """Mean cross-entropy over the probe's tokens, in nats, and what it was computed in. Example: `ProbeLoss(6.93, "float32")`."""

    loss: float
    dtype: str


def probe(vocabulary: int) -> Int32:
    """Token ids from all over the vocabulary, int32 `[PROBE_TOKENS]`, the same in every process."""
    return np.random.default_rng(vocabulary).integers(0, vocabulary, PROBE_TOKENS).astype(np.int32)


def probe_loss(learner: Learner) -> ProbeLoss:
    """How the learner scores the probe. A function of a learner, for `LearnerGroup.foreach_learner`."""
    batch = plain_batch([(probe(int(learner.policy.model.config.vocab_size)), np.arange(PROBE_TOKENS) > 0)])
    return ProbeLoss(learner.score(batch).terms["loss"], learner.config.dtype)


def saved_loss(folder: Path) -> float:
    """How the model in a folder scores the probe, loaded as anyone would load it, in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False).eval()
    ids = torch.from_numpy(probe(int(model.config.vocab_size))).long()[None]
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def check_saved(folder: Path, learner: ProbeLoss) -> None:
    """Raise SavedModelError when the model in `folder` scores the probe otherwise than the learner it was written from."""
    found, bound = saved_loss(folder), BOUNDS.get(learner.dtype, ROUGH_BOUND)
    if not abs(found - learner.loss) <= bound:
        raise SavedModelError(
            f"the model saved in {folder} is not the one that was trained: on a probe its loss is {found:.4f}, the learner's "
            f"{learner.loss:.4f} (bound {bound:g})"
        )
