"""`burnish/classifier-v1`: a classifier that was trained on a team's own examples (`burnish guard train`).

    [[detectors]]
    use = "burnish/classifier-v1"
    name = "attacks"
    category = "injection"
    args = { model = "attacks", digest = "…" }

The policy names the digest, so that its id tells of the weights too: one text and one policy id give one decision.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from ..policy import DetectorUse, Policy, detector_options
from ..registry import Find, detector
from ..types import Match
from .ngrams import Classifier, load
from .topics import passages

CLASSIFIER = "burnish/classifier-v1"


class ClassifierOptions(BaseModel):
    """Options of `burnish/classifier-v1`.

    model: the classifier's folder, as seen from the policy's. digest: the SHA-256 that `burnish guard train` gave. threshold: the
    probability from which a text is found; without, the one that was chosen in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    threshold: float | None = Field(default=None, gt=0, le=1)


@detector(CLASSIFIER)
def classifier(policy: Policy, use: DetectorUse) -> Find:
    """Finds in each text the passage that is most likely of its category. Raises ValueError on unfit options and unfit files."""
    options = _options(policy, use)
    try:
        model = load(policy.folder / options.model, options.digest)
    except ValueError as error:
        raise ValueError(f"{policy.source}: detector {use.name}: {error}") from None
    threshold = options.threshold if options.threshold is not None else model.card.threshold

    def find(text: str) -> Iterator[Match]:
        found = most_likely(model, text)
        if found is not None and found[0] >= threshold:
            score, start, end = found
            yield Match(use.name, use.category, start, end, score=score)

    return find


def classifiers_of(policy: Policy) -> dict[str, str]:
    """The digest of each classifier that a policy names, by its folder as the policy has it. Raises ValueError on unfit options."""
    uses = [_options(policy, use) for use in policy.detectors if use.use == CLASSIFIER]
    return {options.model: options.digest for options in uses}


def _options(policy: Policy, use: DetectorUse) -> ClassifierOptions:
    return detector_options(ClassifierOptions, policy, use)


def most_likely(model: Classifier, text: str) -> tuple[float, int, int] | None:
    """The probability of the passage that scores highest, or of the whole, and where it begins and ends; None for an empty text."""
    if not text:
        return None
    where = list(dict.fromkeys([*passages(text), (0, len(text))]))
    likely = model.probabilities(text, where)
    best = int(likely.argmax())
    return float(likely[best]), *where[best]
