"""A plug-in whose reward a random policy can find and climb: the share of digits in the answer."""

from burnish.rewards.plugin import reward
from burnish.rewards.types import RewardInput


@reward("tests/digits-v1")
def digits(episode: RewardInput) -> float:
    text = episode.answer or ""
    return sum(character.isdigit() for character in text) / max(len(text), 1)
