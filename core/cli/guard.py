"""What `burnish guard …` does around `burnish.guardrails`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.cli.models import table_lines
from burnish.envs.registry import load_plugin
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import Place, Policy, load_policy
from burnish.guardrails.tool_calls import check_call
from burnish.guardrails.types import Decision
from burnish.inspector.text import printable

if TYPE_CHECKING:
    from burnish.trainer.evaluation.guard_record import GuardRecord, MeasuredModel
    from burnish.trainer.evaluation.guarded import GuardRates

MAX_FILE = 4_000_000
"""Bytes of a file whose text is checked."""


def load_detectors(plugins: Sequence[Path] | None, policy: str | None) -> None:
    """Load files that register detectors of one's own. Raises ValueError where there is no policy to use them."""
    if plugins and not policy:
        raise ValueError("--plugin has no effect without --policy: what it brings are its detectors")
    for file in plugins or ():
        load_plugin(file)


def policy_lines(policy: Policy) -> list[str]:
    """What a policy guards, a line for each category, after its id."""
    finders = _finders(policy)
    rows = [
        (
            name,
            category.kind,
            "always on" if category.always_on else "on" if category.enabled else "off",
            category.action,
            ", ".join(category.where),
            ", ".join(finders[name]),
        )
        for name, category in policy.categories.items()
    ]
    return [policy.id, *table_lines(("category", "kind", "", "action", "of", "found by"), rows)]


def policy_row(policy: Policy, broken: Sequence[str]) -> dict[str, Any]:
    """The same for a program, with what the policy decides otherwise on than its own examples say."""
    finders = _finders(policy)
    facts = {"kind", "always_on", "enabled", "action", "where"}
    categories = {
        name: {**category.model_dump(mode="json", include=facts), "found_by": finders[name]} for name, category in policy.categories.items()
    }
    return {"policy": policy.id, "digest": policy.digest, "categories": categories, "broken": list(broken)}


def _finders(policy: Policy) -> dict[str, list[str]]:
    """Of each category, the names of what finds it."""
    rules = [(rule.category, rule.name) for rule in policy.rules]
    rules += [(policy.pii.category, kind) for kind in policy.pii.kinds] if policy.pii is not None else []
    rules += [(policy.languages.category, "script")] if policy.languages is not None else []
    rules += [(policy.grounding.category, "grounding")] if policy.grounding is not None else []
    return {name: [rule for of, rule in rules if of == name] for name in policy.categories}


def broken_promises(guard: Guard) -> Iterator[str]:
    """Examples of the policy's own that it decides otherwise on: those of a topic that are not found, allowed ones that do not pass."""
    policy = guard.policy
    for topic in policy.topics:
        if not policy.categories[topic.category].enabled:
            continue
        where = policy.categories[topic.category].where[0]
        for text in topic.examples:
            if topic.name not in [finding.rule for finding in guard.check(text, where).findings]:
                yield f"topics.{topic.name}: its own example is not found: {text!r}"
        for text in topic.allowed:
            if topic.name in [finding.rule for finding in guard.check(text, where).findings]:
                yield f"topics.{topic.name}: what it allows is found: {text!r}"
    for one in policy.allowed:
        for text in one.examples:
            decision = guard.check(text, "input")
            if decision.action != "allow":
                rules = ", ".join(finding.rule for finding in decision.findings)
                yield f"allowed.{one.name}: {decision.action} by {rules}: {text!r}"


def read_text(file: Path) -> str:
    """The text of a file, a pipe's too. Raises ValueError when there is none, it is too large or no text."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE + 1)  # what has no end, such as a device, says that its size is 0
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    if len(content) > MAX_FILE:
        raise ValueError(f"{file}: more than {MAX_FILE} bytes, and no more are checked")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


def decision_lines(decision: Decision) -> list[str]:
    """A decision for a person: what is done, why, and what is said."""
    lines = [f"{decision.action} by {decision.policy}"]
    for finding in decision.findings:
        how = "" if finding.reading in ("plain", "original") else f", read as {finding.reading}"
        score = "" if finding.score == 1.0 else f", {finding.score:.2f}"
        lines.append(f"  {finding.category}: {finding.rule} at {finding.start}–{finding.end}{how}{score}: {finding.evidence!r}")
    if decision.action != "allow":
        lines.append(f"  reply: {decision.reply}")
    return [printable(line) for line in lines]


def check_text(file: str, text: str, where: Place, context: str | None = None) -> tuple[Decision, str]:
    """Decide on one text by the policy in a file, and say what of the policy it was not held to. context: what it must follow from. Raises
    ValueError where there is one and the policy has no use for it."""
    policy = load_policy(file)
    if context is not None and policy.grounding is None:
        raise ValueError(f"--context has no effect: {file} has no [grounding]")
    unheld = where == "output" and context is None and policy.grounding is not None
    return Guard(policy).check(text, where, context), "without --context, [grounding] finds nothing" if unheld else ""


def call_row(file: str, call: str) -> dict[str, Any]:
    """Decide on a tool call written as JSON, `{"name": …, "arguments": {…}}`. Raises ValueError when it is none."""
    try:
        given = json.loads(call)
        name, arguments = given["name"], given.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError('--call needs JSON of the form {"name": "search", "arguments": {"query": "…"}}') from None
    decided = check_call(load_policy(file), name, arguments)
    return decided.to_row()


MEASURES = ("recall", "false_positives", "attack_success", "refusal", "over_refusal")


def evaluation_lines(policy: Policy, measured: Mapping[str, GuardRates]) -> list[str]:
    """An evaluation as a table, a line for all rows, each category and each family."""
    rows = [(name, *(str(getattr(one, measure)) for measure in MEASURES)) for name, one in measured.items()]
    return [printable(line) for line in [policy.id, *table_lines(("of", *map(_in_words, MEASURES)), rows)]]


def record_lines(record: GuardRecord) -> list[str]:
    """What a model answered as a table; with a base, its table before that and what became of each measure after it."""
    lines = [record.policy]
    for what, model in (("base", record.base), ("model", record.model)):
        lines += _model_lines(what, model) if model is not None else []
    rows = [
        (group, _in_words(measure), f"{one.difference:+.1%} [{one.low:+.1%}, {one.high:+.1%}] of {one.n}", one.significance)
        for group, measures in record.differences.items()
        for measure, one in measures.items()
    ]
    if record.base is not None:
        lines += (
            table_lines(("of", "", "model minus base", "exact test"), rows)
            if rows
            else ["too few prompts were answered by both to compare"]
        )
    return [printable(line) for line in lines]


def _model_lines(what: str, model: MeasuredModel) -> list[str]:
    rows = [(group, *(str(found.get(measure, "–")) for measure in MEASURES)) for group, found in model.measured.items()]
    failed = f"; prompts that failed, and count nowhere: {model.failed}" if model.failed else ""
    head = f"{what}: {model.name}, weights sha256:{model.weights_sha256[:12]}{failed}"
    return [head, *table_lines(("of", *map(_in_words, MEASURES)), rows)]


def _in_words(measure: str) -> str:
    return measure.replace("_", " ")


def evaluation_rows(policy: Policy, measured: Mapping[str, GuardRates]) -> dict[str, Any]:
    """An evaluation as JSON."""
    return {"policy": policy.id, "measured": {name: one.to_row() for name, one in measured.items()}}
