"""Every sentence of the inspection environment, written and read in one place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .parts import INTERNAL, REASONS, VERDICTS, Feature, Level, Part, Reason, Verdict, fatal_side

VERDICT_PATTERN = re.compile(
    r"(?:^|[;.\n])[^\S\n]*verdict:\s*(?P<verdict>[a-z]+)\s*;\s*reason:\s*(?P<reason>[a-z]+)\s*(?:\.\s*)?$", re.IGNORECASE
)

VERDICT_HELP = f"Answer 'verdict: V; reason: R' with V one of {', '.join(VERDICTS)} and R one of {', '.join(REASONS)}."

INSTRUCTIONS = (
    'You inspect parts. Call one tool per message, for example measure(7, "bore"). '
    f"Internal features ({', '.join(INTERNAL)}) beyond the limit are rework when undersize and scrap when oversize; "
    "external ones the other way round. One scrap feature scraps the part. Measuring costs money. "
) + VERDICT_HELP


def request(part: Part) -> str:
    """Example: `Inspect part 7: bore, flange.`"""
    return f"Inspect part {part.number}: {', '.join(feature.name for feature in part.features)}."


def measure_call(part: Part, name: str) -> str:
    return f'measure({part.number}, "{name}")'


def spec_call(name: str) -> str:
    return f'spec("{name}")'


def reading(feature: Feature, deviation_um: int, level: Level) -> str:
    """What `measure` answers. Examples: `bore: deviation +31, limit 20`, or `bore: size 25031` where it must be combined."""
    if level.combine:
        return f"{feature.name}: size {feature.nominal_um + deviation_um}"
    return f"{feature.name}: deviation {deviation_um:+d}, limit {feature.limit_um}"


def specification(feature: Feature) -> str:
    """What `spec` answers. Example: `bore: nominal 25000, limit 20`."""
    return f"{feature.name}: nominal {feature.nominal_um}, limit {feature.limit_um}"


def verdict_text(verdict: Verdict, reason: Reason) -> str:
    """Example: `verdict: scrap; reason: undersize`."""
    return f"verdict: {verdict}; reason: {reason}"


def note(name: str, reason: Reason) -> str:
    """What an inspector writes down of a feature. Example: `bore oversize`."""
    return f"{name} {reason}"


def parse_verdict(text: str) -> tuple[Verdict, Reason] | None:
    """The verdict and reason at the end of the policy's answer, after notes or on their own; None when there is not exactly one."""
    match = VERDICT_PATTERN.search(text)
    if match is None or text.lower().count("verdict:") > 1:
        return None
    verdict = next((v for v in VERDICTS if v == match["verdict"].lower()), None)
    reason = next((r for r in REASONS if r == match["reason"].lower()), None)
    return None if verdict is None or reason is None else (verdict, reason)


def finding(feature: Feature) -> str:
    """One feature explained, as a note on the shop floor would. Example: `bore: deviation +31, limit 20: oversize: scrap`."""
    return f"{reading(feature, feature.deviation_um, Level(features=1))}: {feature.reason}: {feature.verdict}"


def standard(name: str, limit_um: int) -> str:
    """The rule for one kind of feature, as a standard lays it down. Example, of a bore and 20:

    `Standard bore (internal), limit 20. From -20 to +20: within: pass. Below -20: undersize: rework. Above +20: oversize: scrap.`
    """
    side = "internal" if name in INTERNAL else "external"
    below, above = ("scrap" if fatal_side(name) == reason else "rework" for reason in ("undersize", "oversize"))
    within = f"From -{limit_um} to +{limit_um}: within: pass."
    beyond = f"Below -{limit_um}: undersize: {below}. Above +{limit_um}: oversize: {above}."
    return f"Standard {name} ({side}), limit {limit_um}. {within} {beyond}"


def report(part: Part, order: Sequence[Feature]) -> str:
    """A whole inspection written down: readings, then the verdict."""
    return f"{'; '.join(reading(f, f.deviation_um, Level(features=1)) for f in order)}. {verdict_text(part.verdict, part.reasons[0])}"


def explained_report(part: Part, order: Sequence[Feature]) -> str:
    """A report that says of each feature what its reading means."""
    return f"{'; '.join(finding(f) for f in order)}. {verdict_text(part.verdict, part.reasons[0])}"


def session(part: Part, order: Sequence[Feature]) -> str:
    """What was said and answered at the bench, one line each below who spoke, up to the verdict."""
    lines = [("user", request(part))]
    for feature in order:
        lines += [("assistant", measure_call(part, feature.name)), ("tool", reading(feature, feature.deviation_um, Level(features=1)))]
    lines.append(("assistant", verdict_text(part.verdict, part.reasons[0])))
    return "\n".join(f"{who}\n{text}" for who, text in lines)
