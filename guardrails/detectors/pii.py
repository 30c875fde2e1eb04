"""`burnish/pii-v1`: personal and secret information, by its form, and by its check digits where it has some."""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ...envs.registry import did_you_mean
from ...rpc.extras import require
from ..patterns import compiled, spans
from ..policy import DetectorUse, Policy
from ..registry import Find, detector
from ..types import Match

Check = Callable[[str], bool]


def _digits(text: str) -> str:
    return "".join(letter for letter in text if letter.isdigit())


def _standard(module: str, text: str) -> bool:
    """What python-stdnum says about a number."""
    from importlib import import_module

    return bool(import_module(f"stdnum.{module}").is_valid(text))


def _is_card(text: str) -> bool:
    number = _digits(text)
    return 13 <= len(number) <= 19 and number[0] in "23456" and len(set(number)) > 1 and _standard("luhn", number)


def _is_phone(text: str) -> bool:
    """7 to 15 digits (ITU-T E.164), written as a number to be called: with + or 00, a leading 0, or an area code in brackets."""
    number = _digits(text)
    return 8 <= len(number) <= 15 and len(set(number)) > 2


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _any(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of information: expressions whose group 1 it is, and what must hold of what they match.

    by_form: whether nothing but its form tells it, so that a number with check digits, of which it may be a part, comes first.
    """

    patterns: tuple[str, ...]
    check: Check = _any
    ignore_case: bool = True
    by_form: bool = False


NOT_IN_A_WORD = r"(?:^|[^\pL\pN])"
END = r"(?:$|[^\pL\pN])"

KINDS: dict[str, Kind] = {
    "email": Kind((r"([\pL\pN._%+'-]+@[\pL\pN-]+(?:\.[\pL\pN-]+)*\.\pL{2,24})",)),
    "phone": Kind(
        (
            r"(?:^|[^\pL\pN])((?:\+|00)[1-9][0-9](?:[ ()./-]{0,2}[0-9]){6,13})(?:$|[^0-9\pL])",
            r"(?:^|[^\pL\pN.,+-])(\(?0[1-9][0-9]{1,4}\)?(?:[ /-]{1,3}[0-9]{2,8}){1,4})(?:$|[^0-9\pL])",
            r"(?:^|[^\pL\pN.,+-])(\(?[2-9][0-9]{2}\)?[ .-]{1,2}[2-9][0-9]{2}[ .-][0-9]{4})(?:$|[^0-9\pL])",
        ),
        _is_phone,
        by_form=True,
    ),
    "iban": Kind(((NOT_IN_A_WORD + r"([A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{1,4}){3,9})" + END),), partial(_standard, "iban")),
    "credit_card": Kind(((r"(?:^|[^\pL\pN.])([2-6][0-9]{3}(?:[ -]?[0-9]){9,15})(?:$|[^\pL\pN])"),), _is_card),
    "ip_address": Kind(
        (
            r"(?:^|[^\pL\pN.])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?:$|[^\pL\pN.]|\.(?:$|\s))",
            r"(?:^|[^\pL\pN:])([0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?:$|[^\pL\pN:])",
        ),
        _is_address,
    ),
    "us_ssn": Kind(((NOT_IN_A_WORD + r"([0-9]{3}[- ][0-9]{2}[- ][0-9]{4})" + END),), partial(_standard, "us.ssn")),
    "de_tax_id": Kind(((NOT_IN_A_WORD + r"([1-9][0-9](?:[ ]?[0-9]{3}){3})" + END),), partial(_standard, "de.idnr")),
    "jp_my_number": Kind(((NOT_IN_A_WORD + r"([0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4})" + END),), partial(_standard, "jp.in_")),
    "secret_key": Kind(
        (
            NOT_IN_A_WORD + r"((?:AKIA|ASIA)[A-Z0-9]{16})" + END,
            NOT_IN_A_WORD + r"((?:sk|pk|rk)[-_](?:[A-Za-z]{2,8}[-_])?[A-Za-z0-9_-]{20,})" + END,
            NOT_IN_A_WORD + r"((?:ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{20,})" + END,
            NOT_IN_A_WORD + r"(xox[abprs]-[A-Za-z0-9-]{10,})" + END,
            NOT_IN_A_WORD + r"(eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)",
            r"(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\z))",
        ),
        ignore_case=False,
    ),
    "url_password": Kind((r"([a-z][a-z0-9+.-]{1,20}://[^\s/:@]+:[^\s/@]+@[^\s/]+)",)),
}
"""The kinds that a policy can name. Numbers of a bank account, a card, a tax office or an insurance need the right check digits."""

MAX_GROUPS = 10
STANDARD = ("iban", "credit_card", "us_ssn", "de_tax_id", "jp_my_number")


@detector("burnish/pii-v1", reads=("plain", "decoded"))
def pii(policy: Policy, use: DetectorUse) -> Find:
    """Finds the kinds that `[pii]` names, each a rule of its own with its own action. Raises ValueError on a kind that is unknown."""
    table = policy.pii
    assert table is not None, "made only where the policy has [pii]"
    for name in table.kinds:
        if name not in KINDS:
            raise ValueError(f"{policy.source}: pii.kinds.{name}: there is no such kind{did_you_mean(name, sorted(KINDS))}")
    if set(table.kinds) & set(STANDARD):
        require("a policy with numbers that have check digits", ["stdnum"], "guard")
    rules = []
    for name in sorted(table.kinds, key=lambda name: KINDS[name].by_form):
        kind = KINDS[name]
        rules.append((name, table.kinds[name], kind.check, [compiled(one, kind.ignore_case) for one in kind.patterns]))

    def find(text: str) -> Iterator[Match]:
        taken: list[tuple[int, int]] = []  # in order, without overlap
        for name, action, check, expressions in rules:
            for start, end in (span for expression in expressions for span in spans(expression, text, 1)):
                end = _holding(text, start, end, check)
                i = bisect_left(taken, (start, end))
                free = (i == 0 or taken[i - 1][1] <= start) and (i == len(taken) or end <= taken[i][0])
                if end > start and free:
                    taken.insert(i, (start, end))
                    yield Match(name, use.category, start, end, action)

    return find


def _holding(text: str, start: int, end: int, check: Check) -> int:
    """Where what holds ends: an expression takes the words after a number for groups of it. `start` when nothing holds."""
    for _ in range(MAX_GROUPS):
        if check(text[start:end]):
            return end
        end = max(text.rfind(gap, start, end) for gap in " -")
        if end <= start:
            break
    return start
