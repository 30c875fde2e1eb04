"""Reward Lambda handlers for the tests, as users write them."""

from __future__ import annotations

import json
import time
from typing import Any


def lambda_handler(event: Any, context: Any) -> Any:
    assert context.get_remaining_time_in_millis() > 0
    rows = []
    for sample in event:
        right = sample["messages"][-1]["content"] == sample["metadata"]["reference_answer"] == sample["reference_answer"]
        accuracy = {"name": "accuracy", "value": float(right), "type": "Reward"}
        rows.append({"id": sample["id"], "aggregate_reward_score": float(right), "metrics_list": [accuracy]})
    return rows


def behind_a_gateway(event, context):
    return {"statusCode": 200, "body": json.dumps(lambda_handler(json.loads(event["body"]), context))}


async def awaited(event, context):
    return lambda_handler(event, context)


def raises(event, context):
    raise KeyError("reference")


def hangs(event, context):
    time.sleep(5)


def forgets_to_return(event, context):
    event.clear()


def not_json(event, context):
    return [{"id": sample["id"], "aggregate_reward_score": {1, 2}} for sample in event]


def one_argument(event):
    return event
