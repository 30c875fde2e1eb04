"""A reward Lambda: a list of conversations in, a list of scores out."""

import json


def lambda_handler(event, context):
    return [judge(sample) for sample in event]


def judge(sample: dict) -> dict:
    expected, last = sample["metadata"]["reference_answer"], sample["messages"][-1]
    try:
        answer = json.loads(last["content"]) if last["role"] == "assistant" else None  # it was cut short before it answered
        form = isinstance(answer, dict) and set(answer) == {"ship", "reason"}
        verdict = isinstance(answer, dict) and answer.get("ship") is expected["ship"]
    except (ValueError, RecursionError):  # whatever the policy writes has a score
        form = verdict = False
    return {
        "id": sample["id"],
        "aggregate_reward_score": 0.2 * form + 0.8 * verdict,
        "metrics_list": [
            {"name": "form", "value": float(form), "type": "Reward"},
            {"name": "verdict", "value": float(verdict), "type": "Reward"},
        ],
    }
