"""Is the last line the answer? A verifier, complete."""

from burnish import RewardInput, Score, verifier


@verifier("my-team/short-answer-v1")
def short_answer(episode: RewardInput) -> Score:
    lines = (episode.answer or "").strip().splitlines()
    said = lines[-1] if lines else ""
    return Score(said == str(episode.data["answer"]), {"length": len(said)})
