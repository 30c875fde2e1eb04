"""Feedback as rows that the phases of training read as they are.

    sft          a correction: what was asked, and what should have been answered
    preference   a correction over the answer that it corrects; of two answers to one prompt, the liked one over the disliked
    rft          a task: what was asked where the answer was disliked, corrected, or failed a verdict
    document     a correction of a completion: the prompt and what should have followed, as one text

The first three are conversations, which a chat template renders. What a completion goes on from is none, and would be put into a user's
turn, where the model never read it: those forms leave completions out, and say so.

Clients write all of it. A guardrail policy takes out what it redacts and leaves out what it holds back; every row is read by the reader of
its phase before it is written.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...guardrails.guard import Guard
from ...guardrails.policy import Place
from ...guardrails.verdict import judge
from ...trainer.data.forms import read_conversation, read_document, read_messages, read_preference
from ...trainer.data.task_files import task_row
from ..asked import Asked
from ..observed import Prompted, Question
from .rows import FeedbackRow

ExportForm = Literal["sft", "preference", "rft", "document"]
ON_COMPLETION = "is on a completion, whose prompt is no conversation; --as document takes its correction"
ON_CHAT = "is on a chat, whose correction --as sft takes"
NO_CONVERSATION = "has no conversation: none may be kept, or it had been let go of"
HELD_BACK = "content_filter"
"""How an answer ended of which a policy's own words stand in the place of the model's."""


class _LeftOut(Exception):
    """Why there is no row."""


@dataclass(slots=True)
class AnswerOpinion:
    """All that was said of one choice of an answer; what came later counts. last: its latest row. verdicts: by source and name."""

    last: FeedbackRow
    rating: str | None = None
    correction: str | None = None
    verdicts: dict[tuple[str, str], bool] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """The verdicts that it did not pass."""
        return sorted({name for (_, name), passed in self.verdicts.items() if not passed})

    @property
    def wants_better(self) -> bool:
        return self.rating == "down" or self.correction is not None or bool(self.failed)

    def add(self, row: FeedbackRow) -> None:
        if row.asked is None and self.last.asked is not None:  # the conversation was no longer there when it came
            row = row.model_copy(update={"asked": self.last.asked, "answered": self.last.answered})
        self.last = row
        self.rating = row.rating or self.rating
        self.correction = row.correction or self.correction
        self.verdicts |= {(row.source, name): passed for name, passed in row.verdicts.items()}

    @property
    def notes(self) -> dict[str, Any]:
        """Where a row comes from."""
        last = self.last
        return {"key": last.key, "model": last.model, "served_by": last.served_by, "time": last.time}


@dataclass
class Exported:
    """Rows, and why there are no more: how much feedback was left out, by reason. unsuited: has nothing that makes a row of this form."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unsuited: int = 0


def export(feedback: Iterable[FeedbackRow], form: ExportForm, guard: Guard | None = None) -> Exported:
    """The rows that feedback makes in a form. Raises what `Guard.check` raises where a detector does not answer.

    Example: `export(open_store(folder).feedback(), "sft").rows[0]["messages"][-1]` is the first correction.
    """
    made, seen = Exported(), set[str]()
    found = list[AnswerOpinion]()
    for one in opinions(feedback):
        if isinstance(one.last.asked, Question if form == "document" else Prompted):
            made.left_out[ON_CHAT if form == "document" else ON_COMPLETION] += 1
        else:
            found.append(one)
    rows = {"sft": _corrections, "preference": _pairs, "rft": _tasks, "document": _documents}[form](found, guard, made)
    for row in rows:
        said = json.dumps({key: value for key, value in row.items() if key not in ("id", "metadata", "feedback")}, sort_keys=True)
        if said in seen:
            made.left_out["says what another row says"] += 1
            continue
        seen.add(said)
        made.rows.append(row)
    return made


def opinions(feedback: Iterable[FeedbackRow]) -> list[AnswerOpinion]:
    """Feedback by the answer that it is about, in the order in which answers got their first."""
    found: dict[tuple[str, int], AnswerOpinion] = {}
    for row in feedback:
        found.setdefault((row.id, row.choice), AnswerOpinion(row)).add(row)
    return list(found.values())


def _corrections(found: Sequence[AnswerOpinion], guard: Guard | None, made: Exported) -> Iterator[dict[str, Any]]:
    for one in found:
        if one.correction is None:
            made.unsuited += 1
            continue
        try:
            messages, tools = _asked(one, guard)
            row = {"messages": [*messages, _clean(_written(one.correction), guard)], **_with(tools), **_named(one)}
            _check(row, form="sft")
            _keeps(guard, row["messages"])
        except _LeftOut as why:
            made.left_out[str(why)] += 1
            continue
        yield row


def _pairs(found: Sequence[AnswerOpinion], guard: Guard | None, made: Exported) -> Iterator[dict[str, Any]]:
    """Each answer is in one pair at most: with its correction, or with another answer to its prompt."""
    rated: defaultdict[str, dict[str, list[AnswerOpinion]]] = defaultdict(lambda: {"up": [], "down": []})
    for one in found:
        if one.correction is not None:
            yield from _pair(one, _written(one.correction), one, guard, made)
        elif one.rating is not None and one.last.asked is not None:
            rated[_prompt_key(one)][one.rating].append(one)
        else:
            made.unsuited += 1
    for by_rating in rated.values():
        pairs = list(zip(by_rating["up"], by_rating["down"], strict=False))
        made.unsuited += len(by_rating["up"]) + len(by_rating["down"]) - 2 * len(pairs)
        for liked, disliked in pairs:
            assert liked.last.answered is not None, "what was asked is kept with what was answered"
            yield from _pair(disliked, _told(liked), liked, guard, made)


def _pair(worse: AnswerOpinion, chosen: dict[str, Any], of: AnswerOpinion, guard: Guard | None, made: Exported) -> Iterator[dict[str, Any]]:
    try:
        messages, tools = _asked(worse, guard)
        chosen, rejected = _clean(chosen, guard), _clean(_told(worse), guard)
        row = {"prompt": messages, "chosen": [chosen], "rejected": [rejected], **_with(tools), **_named(of)}
        _check(row, form="preference")
        _keeps(guard, [*messages, chosen])
    except _LeftOut as why:
        made.left_out[str(why)] += 1
        return
    yield row


def _tasks(found: Sequence[AnswerOpinion], guard: Guard | None, made: Exported) -> Iterator[dict[str, Any]]:
    """One task for each prompt, whatever was wrong with the answers to it."""
    asked = set[str]()
    for one in found:
        if not one.wants_better:
            made.unsuited += 1
            continue
        try:
            messages, tools = _asked(one, guard)
            if (key := _prompt_key(one)) in asked:
                raise _LeftOut("says what another row says")
            why = {"rating": one.rating, "failed": one.failed, **one.notes}
            row = {"id": _named(one)["id"], "messages": messages, **_with(tools), "feedback": why}
            if one.correction is not None:
                row["reference_answer"] = _clean(_written(one.correction), guard)["content"]
            _check(row, form="rft")
        except _LeftOut as left:
            made.left_out[str(left)] += 1
            continue
        asked.add(key)
        yield row


def _documents(found: Sequence[AnswerOpinion], guard: Guard | None, made: Exported) -> Iterator[dict[str, Any]]:
    for one in found:
        if one.correction is None:
            made.unsuited += 1
            continue
        try:
            asked = one.last.asked
            if not isinstance(asked, Prompted):
                raise _LeftOut(NO_CONVERSATION)
            (prompt,) = asked.prompts
            if asked.echo:
                raise _LeftOut("was asked with echo, so that a correction may repeat the prompt")
            if not isinstance(prompt, str):
                raise _LeftOut("has a prompt of token ids, of which no text is known")
            text = _clean(_written(prompt + one.correction), guard)["content"]
            row = {"text": text, **_named(one)}
            _check(row, form="document")
            _keeps(guard, [_written(text)])
        except _LeftOut as why:
            made.left_out[str(why)] += 1
            continue
        yield row


def _asked(one: AnswerOpinion, guard: Guard | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if one.last.asked is None:
        raise _LeftOut(NO_CONVERSATION)
    assert isinstance(one.last.asked, Question), "`export` left the others out"
    messages, tools = one.last.asked.messages, one.last.asked.tools
    return (messages, tools) if guard is None else _redacted(messages, tools, guard, "input")


def _told(one: AnswerOpinion) -> dict[str, Any]:
    """What the model answered."""
    if one.last.answered is None:
        raise _LeftOut(NO_CONVERSATION)
    if one.last.answered.finish_reason == HELD_BACK:
        raise _LeftOut("the answer was a policy's own")
    return one.last.answered.message


def _written(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _clean(answer: dict[str, Any], guard: Guard | None) -> dict[str, Any]:
    """An answer without what the policy redacts."""
    return answer if guard is None else _redacted([answer], [], guard, "output")[0][0]


def _redacted(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], guard: Guard, where: Place
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        asked = Asked.of({"messages": messages, "tools": tools})
        decided = {text: guard.check(text, where) for text in asked.texts()}
        if where == "output" and any(decision.blocked for decision in decided.values()):
            raise _LeftOut(f"{guard.policy.id} holds an answer back")
        if not any(finding.action == "redact" for decision in decided.values() for finding in decision.findings):
            return messages, tools
        made = asked.without({text: decision.findings for text, decision in decided.items()})
    except ValueError as error:
        raise _LeftOut(f"unfit: {error}") from None
    return made["messages"], made.get("tools") or []


def _keeps(guard: Guard | None, messages: list[dict[str, Any]]) -> None:
    """Raise _LeftOut where a conversation to learn from breaks the policy."""
    if guard is None:
        return
    try:
        verdict = judge(guard, read_messages(messages, "messages"))
    except ValueError as error:  # each message may be looked at, and all together be too long
        raise _LeftOut(f"unfit: {error}") from None
    if not verdict.kept:
        raise _LeftOut(f"breaks {guard.policy.id}: {verdict.reason}")


def _check(row: dict[str, Any], form: ExportForm) -> None:
    """Raise _LeftOut where the phase that a row is for would not read it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
        if form == "rft":
            task_row(row, "feedback", 1)
        else:
            readers: dict[str, Callable[[dict[str, Any]], object]] = {
                "sft": read_conversation,
                "preference": read_preference,
                "document": read_document,
            }
            readers[form](row)
    except ValueError as error:  # half a character too
        raise _LeftOut(f"unfit: {error}") from None


def _prompt_key(one: AnswerOpinion) -> str:
    assert one.last.asked is not None
    return json.dumps(one.last.asked.model_dump(), sort_keys=True)


def _with(tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


def _named(one: AnswerOpinion) -> dict[str, Any]:
    return {"id": f"{one.last.id}/{one.last.choice}", "metadata": one.notes}
