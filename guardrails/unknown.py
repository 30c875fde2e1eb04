"""Where a sentence says that it does not know, and what it names as unknown: what is left of it is claimed."""

from __future__ import annotations

import re

LONGEST = 2000
"""Characters in which the phrase is looked for."""

_SOURCES = (
    "context contexts text texts document documents passage passages source sources sheet sheets page record table manual information"
)
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        f"""{_SOURCES} sorry afraid unfortunately apologies however honestly leider tut mir leid based according given provided ai language
        model question here above moment currently please really just only yet more further anything else enough much exactly sure certain
        certainly ehrlich gesagt mehr genau sicher m s re ve ll d t すみません すみませんが 申し訳ありません 申し訳ありませんが 残念ながら
        これ以上は が けど けれど けれども ので""",
    )
)
"""Words that claim nothing beside an abstention."""
_W = r"[^\W\d_]++(?:['’-][^\W\d_]++)*+"
_DET = r"(?:the|a|an|its|his|her|their|our|your|my|this|that|these|those|any|der|die|das|den|dem|des|ein|eine|einen|sein\w*|ihr\w*)"
_CUT = (
    r"(?:and|but|so|because|since|although|though|yet|except|besides|unless|und|aber|doch|sondern|denn|weil|obwohl|außer"
    r"|of|for|in|from|on|at|by|with|to|von|für|aus|mit|bei|that|than|dass|is|are|was|were|has|have|had|can|could|will|would|should|may|might|must|does|did|ist|sind|war|waren|hat|haben)\b"
)
_QUESTION = r"(?:what|when|where|why|how|whether|if|who|whom|whose|which|was|wann|wo|warum|wieso|wie|wer|welche\w*|ob)"
_PLAIN = rf"(?!{_CUT}){_W}"
_ITEM = rf"(?:{_DET}\s+)?{_PLAIN}"
_LIST = rf"(?:(?:\s*,\s*{_ITEM}){{0,6}}\s*,?\s+(?:or|and|nor|und|oder)\s+{_ITEM}(?=\s*(?:[.!?,;:]|$)))?"
_N = r"(?:\s+\d+)?"
_OF = rf"(?:\s+(?:of|for|in|from|von|für|aus)\s+(?:{_DET}\s+)?{_PLAIN}{_N}){{0,2}}"
_NAMED = rf"{_DET}\s+(?:{_PLAIN}\s+){{0,2}}{_PLAIN}{_N}{_OF}"
_NOUNS = rf"(?:{_NAMED}|{_PLAIN}{_OF}){_LIST}"
_AND = r"(?:and|but|so|because|since|although|though|yet|except|besides|unless|und|aber|doch|sondern|denn|weil|obwohl|außer)\b"
_ASKED = rf"{_QUESTION}\b(?:\s+{_DET}\s+{_W}\s+(?:and|und)(?=\s+{_DET}\b))?(?:\s+(?!{_AND})(?:{_W}|\d+(?:[.,]\d+)*+)){{0,8}}+"
_OBJECT = rf"(?:\s+(?:about|of|on|über|zu))?\s+(?:{_ASKED}|{_NOUNS})"

_NOT = r"(?:do not|don't|don’t|cannot|can't|can’t)"
_ABSENT = r"not (?:in|stated in) the (?:context|text|document)"
_I = rf"(?:i|we) {_NOT} (?:know|say|tell|answer)|(?:i am|i'm|i’m) not (?:sure|certain)|ich wei(?:ß|ss) (?:es|das) nicht"
_BACK = r"(?:das )?wei(?:ß|ss) ich nicht"
_JA = r"(?:分かりません|わかりません|分からない)"
PHRASE = re.compile(rf"\b(?:{_I}|{_ABSENT}|{_BACK})\b|{_JA}", re.IGNORECASE)
"""Words that say that one does not know, in English, German or Japanese."""

_SAYS = r"(?:say|mention|state|contain|provide|include|specify|tell|give|cover)"
_SILENT = re.compile(
    rf"^\s*(?!when\b|if\b|where\b){_ASKED}\s*,\s*(?:{_BACK}|{_I})\b"
    rf"|\b(?:{_I})\b(?:{_OBJECT})?"
    rf"|\b(?:{_DET}\s+{_PLAIN}\s+)?{_BACK}\b(?:\s*,\s*{_ASKED})?"
    rf"|(?:\b{_NAMED}\s+(?:is|are|was|were)\s+)?\b{_ABSENT}\b(?:\s*:\s+{_NAMED}{_LIST})?"
    rf"|\b(?:{_SOURCES.replace(' ', '|')}|it|they|this)\s+(?:do|does|did)(?:\s+not|n['’]t)\s+{_SAYS}\b(?:{_OBJECT})?"
    rf"|\bno\s+(?:information|mention)\b(?:{_OBJECT})?"
    rf"|(?:(?!です|ます|でした|ました|だ)[^\s、。，]){{0,16}}?(?:は|が|を|も|か|こと)?(?:よく|まだ)?{_JA}(?:が|けど|けれど|けれども|ので)?",
    re.IGNORECASE,
)


def says_unknown(text: str) -> bool:
    """Whether a text has words that say that one does not know, whatever it says beside. Example: "I don't know; it is 7." has."""
    return PHRASE.search(text[:LONGEST]) is not None


def claimed_beside(sentence: str) -> tuple[str, str]:
    """What a sentence that says that it does not know says beside, and what it names as unknown.

    Example: "I don't know its price, but it is steel." says "but it is steel" beside.
    """
    silent = list[str]()

    def out(found: re.Match[str]) -> str:
        silent.append(found[0])
        return " "

    return _SILENT.sub(out, sentence), " ".join(silent)


def is_filler(word: str) -> bool:
    """Whether a word, in lower case, claims nothing beside an abstention."""
    return word in _FILLERS
