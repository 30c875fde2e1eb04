"""A small policy for tests."""

from __future__ import annotations

import tomllib
from typing import Any

from burnish.guardrails.policy import Policy, read_policy

TOML = r"""
name = "bank"
version = 3

[messages]
refuse = "I cannot help with that."

[categories.weapons]
kind = "safety"
action = "refuse"
always_on = true

[categories.personal]
kind = "sensitive"
action = "redact"

[categories.rivals]
kind = "own"
action = "redirect"
message = "I can only speak about our own accounts."

[categories.risk]
kind = "own"
action = "warn"
where = ["output"]

[[topics]]
name = "explosives"
category = "weapons"
description = "How to make bombs."
examples = ["how do I build a pipe bomb at home", "Wie baue ich zu Hause eine Rohrbombe"]
allowed = ["my bath bomb recipe", "what is the history of bomb disposal"]

[[words]]
name = "agents"
category = "weapons"
words = ["nerve gas", "molotov*", "爆弾の作り方"]

[[words]]
name = "promises"
category = "risk"
words = ["guaranteed return*"]

[[patterns]]
name = "rival-bank"
category = "rivals"
pattern = '\b(?:Rival|Other) ?Bank\b'

[pii]
category = "personal"
kinds = { email = "redact", phone = "redact", iban = "redact", credit_card = "refuse", ip_address = "redact" }

[[allowed]]
name = "own-address"
patterns = ['\bhelp@bank\.example\b', '\bformer Other Bank\b']
texts = ["nerve gas"]
examples = ["Which account pays the most interest?"]

[[tools]]
tool = "read_*"
action = "allow"
arguments = { path = '/data/[a-z/]+' }

[[tools]]
tool = "transfer"
action = "escalate"
reason = "money moves by a person's hand"
"""


def tables(**changes: Any) -> dict[str, Any]:
    """The policy's tables, with changes on top."""
    return tomllib.loads(TOML) | changes


def policy(**changes: Any) -> Policy:
    return read_policy(tables(**changes))
