"""The suites that come with burnish: small, made for it, and scored by rule. They tell whether a skill was lost, not how good a model
is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ....envs.builtin.functions.cases import make_case
from ....envs.types import Message, Task, message_from_dict
from ....rewards.config import RewardConfig
from ...data.curated import instructions
from ...data.curated.general import GENERAL
from ...data.forms import Conversation
from ...data.sources import found_curated
from . import procedural, refusals
from .files import documents, seeded
from .suite import Suite

SEED = 1_900_000_000
"""Of what is made for suites: far behind what phases draw, and behind the tasks that evaluations begin with."""
CHECKED = (RewardConfig(use="burnish/constraints-v1", name="right"),)


def instruction_tasks(count: int) -> Sequence[Task]:
    """Questions of the catalog's instruction following, other draws than any phase makes, each asked once."""
    tasks: dict[str, Task] = {}
    for row in instructions.rows(SEED, 20 * count):
        prompt = message_from_dict(row["messages"][0])
        if len(tasks) < count and prompt.text not in tasks:
            tasks[prompt.text] = Task(str(len(tasks)), len(tasks), (prompt,), {"checks": row["metadata"]["checks"]})
    return list(tasks.values())


def refusal_tasks(count: int) -> Sequence[Task]:
    """The catalog's questions that would do harm, to be refused, and those that only look like it, to be answered."""
    tasks = []
    for i, talk in enumerate(found_curated(GENERAL, "refusal", 0, count)):
        assert isinstance(talk, Conversation)
        # The rows that are refused come first: `test_suites` holds the file to that.
        tasks.append(Task(str(i), i, talk.messages[:1], {"checks": {"refuses": i < REFUSED}}))
    return tasks[:count]


def call_tasks(count: int) -> Sequence[Task]:
    """Cases of `burnish/FunctionCalls-v0`, the kinds in turn, each with what it asks in its data, so that it can be looked at."""
    tasks = []
    for i in range(count):
        case = make_case(SEED + i)
        asked = [Message("user", case.question).to_dict()]
        tasks.append(Task(str(i), SEED + i, (), {"messages": asked, "tools": list(case.tools), "calls": list(case.calls)}))
    return tasks


REFUSED, ROWS = 24, 40
"""Of the catalog's refusal rows, how many are refused, which come first, and how many there are. Who refuses everything is right on the
first, and that is no skill."""

ARITHMETIC = Suite(
    "burnish/arithmetic-v1",
    "Sums and differences of two numbers up to 20, of burnish/Arithmetic-v0.",
    tasks=partial(seeded, (SEED, 2_000_000_000)),
    environment="burnish/Arithmetic-v0",
    environment_args={"max_operand": 20},
    max_tokens=32,
)
CHOICES = Suite(
    "burnish/choices-v1",
    "Which of four words names a fruit, an animal, a colour, a tool or a city. Guessing gets a quarter.",
    tasks=procedural.choice_tasks,
    rewards=CHECKED,
    success="right",
    chance=0.25,
    max_tokens=16,
)
HARMFUL = Suite(
    "burnish/refusal-v1",
    "Questions that would do harm, in no curated catalog: the share that is refused. Read it beside over-refusal-v1.",
    items=len(refusals.HARMFUL),
    tasks=refusals.harmful_tasks,
    rewards=CHECKED,
    success="right",
)
HARMLESS = Suite(
    "burnish/over-refusal-v1",
    "Questions that only look as if they would do harm, in no curated catalog: the share that is not refused.",
    items=len(refusals.HARMLESS),
    tasks=refusals.harmless_tasks,
    rewards=CHECKED,
    success="right",
)
INSTRUCTIONS = Suite(
    "burnish/instructions-v1",
    "Simple questions whose answer must keep a form that is laid down; of the kinds that the catalog's instruction-following teaches.",
    tasks=instruction_tasks,
    rewards=CHECKED,
    success="right",
)
PLAIN_ENGLISH = Suite(
    "burnish/plain-english-v1",
    "The perplexity of short paragraphs about everyday things, written for burnish.",
    items=24,
    texts=partial(documents, str(Path(__file__).with_name("plain_english.txt"))),
)
PROCEDURAL = Suite(
    "burnish/procedural-v1",
    "Short reasoning made by rule: chains of sums, series, counting, largest of a list, days of the week, ages.",
    tasks=procedural.reasoning_tasks,
    rewards=CHECKED,
    success="right",
    max_tokens=48,
)
REFUSALS = Suite(
    "burnish/refusals-v1",
    "24 questions to refuse and 16 that only look like it, the rows of the catalog's refusal set; judged by whether the answer refuses.",
    items=ROWS,
    tasks=refusal_tasks,
    rewards=CHECKED,
    success="right",
    chance=REFUSED / ROWS,
)
TOOL_USE = Suite(
    "burnish/tool-use-v1",
    "Three functions are offered, and a question wants one call, two, or, of every fourth item, none; of no tool that the catalog teaches.",
    tasks=call_tasks,
    environment="burnish/FunctionCalls-v0",
    chance=0.25,  # what never calling gets
    max_tokens=96,
)
