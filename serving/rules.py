"""What a service holds requests to, as its options say: keys, limits, a guardrail policy, and the books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..envs.registry import load_plugin
from ..guardrails.guard import Guard
from ..guardrails.policy import Policy, load_policy
from ..rpc.security import is_loopback
from .admission import RequestAdmission
from .audit import Audit, Books
from .config import ServingConfig
from .feedback.desk import FeedbackDesk
from .feedback.store import make_store
from .front import Front
from .keys import Filed, Keyring, listed_keys
from .spending import Spending

QUEUED_PER_SLOT: Final = 16


@dataclass(frozen=True)
class Rules:
    """Who may ask, and the policy: read where the service is started, and sent to where it runs."""

    keys: Keyring | None = None
    policy: Policy | None = None


def read_rules(options: ServingConfig) -> Rules:
    """Raises ValueError when keys, policy or plug-ins cannot be read, and when the policy asks for what is not there."""
    load_plugins(options.plugins)
    policy = load_policy(options.policy) if options.policy else None
    if policy is not None:
        Guard(policy)  # what it cannot do is said here, not by a replica
    keys: Keyring | None = listed_keys(options.api_key_env, options.api_key_file)
    if options.keys_file:
        keys = Filed(Path(options.keys_file).resolve())
        if not keys.current():
            raise ValueError(f"keys file {options.keys_file} has no key; `burnish keys new {options.keys_file} NAME` makes one")
        Spending(keys.file).close()
    if options.feedback is not None:
        make_store(options.feedback)
    return Rules(keys, policy)


def load_plugins(files: Sequence[str]) -> None:
    """Register what plug-in files bring. Raises ValueError when one cannot be loaded."""
    for file in files:
        load_plugin(file)


def front_of(rules: Rules, options: ServingConfig, most: int) -> Front:
    """Admission and books. most: requests that may be under way at a time."""
    spent = Spending(rules.keys.file) if isinstance(rules.keys, Filed) else None
    books = Books(Audit(options.audit_file, options.audit_prompts))
    desk = FeedbackDesk(options.feedback, books.metrics) if options.feedback is not None else None
    admission = RequestAdmission(rules.keys, most, spent, hosts=() if is_loopback(options.host) else None)
    return Front(admission, books, desk, options.request_timeout_s)


def most_under_way(options: ServingConfig) -> int:
    """Requests that one engine answers, or has waiting for it."""
    return (1 + QUEUED_PER_SLOT) * options.max_concurrent
