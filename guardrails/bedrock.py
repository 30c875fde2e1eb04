"""`ApplyGuardrail` of Amazon Bedrock's runtime API: its request decided on by a policy, its response made of the decision.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ApplyGuardrail.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..envs.pydantic_words import first_error
from .guard import Guard
from .policy import Policy
from .types import Decision, Finding, told

UNIT = 1000
"""Characters of a text unit, in which Bedrock counts use."""
PII_TYPES = {
    "email": "EMAIL",
    "phone": "PHONE",
    "credit_card": "CREDIT_DEBIT_CARD_NUMBER",
    "iban": "INTERNATIONAL_BANK_ACCOUNT_NUMBER",
    "ip_address": "IP_ADDRESS",
    "us_ssn": "US_SOCIAL_SECURITY_NUMBER",
}
"""Bedrock's names of kinds of information. The others are shown among its `regexes`, by their own."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextBlock(_Strict):
    text: str = Field(min_length=1)
    qualifiers: tuple[Literal["grounding_source", "query", "guard_content"], ...] = ()


class ContentBlock(_Strict):
    text: TextBlock


class ApplyRequest(_Strict):
    """What is asked. `outputScope` "FULL" also shows what was looked at and not found; nothing is here, so it changes nothing."""

    source: Literal["INPUT", "OUTPUT"]
    content: Annotated[tuple[ContentBlock, ...], Field(min_length=1, max_length=100)]
    outputScope: Literal["INTERVENTIONS", "FULL"] = "INTERVENTIONS"


def read_request(body: Any) -> ApplyRequest:
    """Raises ValueError, one line, when the body is no request, or holds what is not text."""
    try:
        return ApplyRequest.model_validate(body)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


def is_meant(policy: Policy, identifier: str, version: str) -> bool:
    """Whether a guardrail's identifier and version are this policy's: its name, and its version or "DRAFT"."""
    return identifier == policy.name and version in ("DRAFT", str(policy.version))


def decide(guard: Guard, request: ApplyRequest) -> Decision:
    """What becomes of it. Blocks that are a grounding source or a query are what an answer is held against; the others are looked at.

    Raises what `Guard.check` raises.
    """
    blocks = [block.text for block in request.content]
    sources = [block.text for block in blocks if "grounding_source" in block.qualifiers]
    where: Literal["input", "output"] = "input" if request.source == "INPUT" else "output"
    return guard.check(_guarded(request), where, "\n".join(sources) if sources else None)


def respond(policy: Policy, request: ApplyRequest, decision: Decision) -> dict[str, Any]:
    """The response that says what was decided."""
    intervened, text = decision.action not in ("allow", "warn"), _guarded(request)
    grounded = any("grounding_source" in block.text.qualifiers for block in request.content)
    return {
        "usage": _usage(policy, len(text), grounded),
        "action": "GUARDRAIL_INTERVENED" if intervened else "NONE",
        "outputs": [{"text": decision.reply}] if intervened else [],
        "assessments": [_assessment(policy, decision)] if decision.findings else [],
        "guardrailCoverage": {"textCharacters": {"guarded": len(text), "total": sum(len(block.text.text) for block in request.content)}},
    }


def _guarded(request: ApplyRequest) -> str:
    blocks = [block.text for block in request.content]
    return "\n".join(block.text for block in blocks if not {"grounding_source", "query"} & set(block.qualifiers))


def _usage(policy: Policy, characters: int, grounded: bool) -> dict[str, int]:
    units = -(-characters // UNIT)
    return {
        "topicPolicyUnits": units if policy.topics else 0,
        "contentPolicyUnits": units if policy.detectors else 0,
        "wordPolicyUnits": units if policy.words else 0,
        "sensitiveInformationPolicyUnits": units if policy.pii is not None else 0,
        "sensitiveInformationPolicyFreeUnits": units if policy.patterns else 0,
        "contextualGroundingPolicyUnits": units if grounded and policy.grounding is not None else 0,
    }


def _assessment(policy: Policy, decision: Decision) -> dict[str, Any]:
    """The findings under the heads that Bedrock has for them, as many under each as `told` leaves."""
    words = {rule.name for rule in policy.words}
    patterns = {rule.name: rule.pattern for rule in policy.patterns}
    of: dict[str, list[Finding]] = {"topic": [], "word": [], "pii": [], "regex": [], "grounding": []}
    for finding in decision.findings:
        if finding.rule in words:
            of["word"].append(finding)
        elif finding.detector == "burnish/pii-v1" and finding.rule in PII_TYPES:
            of["pii"].append(finding)
        elif finding.rule in patterns or finding.detector == "burnish/pii-v1":
            of["regex"].append(finding)
        else:
            of["grounding" if finding.rule == "grounding" else "topic"].append(finding)
    made: dict[str, Any] = {}
    if of["topic"]:
        names = dict.fromkeys((one.rule, _action(one)) for one in of["topic"])
        made["topicPolicy"] = {"topics": [{"name": name, "type": "DENY", "action": action} for name, action in names]}
    if of["word"]:
        made["wordPolicy"] = {
            "customWords": [{"match": one.evidence, "action": _action(one)} for one in told(of["word"])],
            "managedWordLists": [],
        }
    if of["pii"] or of["regex"]:
        entities = [{"match": one.evidence, "type": PII_TYPES[one.rule], "action": _masked(one)} for one in told(of["pii"])]
        regexes = [
            {"name": one.rule, "match": one.evidence, "regex": patterns.get(one.rule, ""), "action": _masked(one)}
            for one in told(of["regex"])
        ]
        made["sensitiveInformationPolicy"] = {"piiEntities": entities, "regexes": regexes}
    if of["grounding"] and policy.grounding is not None:
        made["contextualGroundingPolicy"] = {"filters": [_grounding(policy.grounding.threshold, of["grounding"])]}
    return made


def _grounding(threshold: float, findings: Sequence[Finding]) -> dict[str, Any]:
    return {"type": "GROUNDING", "threshold": threshold, "score": min(one.score for one in findings), "action": _action(findings[0])}


def _action(finding: Finding) -> str:
    return "NONE" if finding.action == "warn" else "BLOCKED"


def _masked(finding: Finding) -> str:
    return "ANONYMIZED" if finding.action == "redact" else _action(finding)
