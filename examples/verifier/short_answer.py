"""Is the last line the answer? A verifier, complete."""

from burnish import RewardInput, Score, verifier


@verifier("my-team/short-answer-v1")
def short_answer(episode: RewardInput) -> Score:
    said = episode.messages[-1].text.strip().splitlines()[-1] if episode.messages[-1].text.strip() else ""
    return Score(said == str(episode.data["answer"]), {"length": len(said)})
