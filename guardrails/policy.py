"""A guardrail policy: one versioned TOML file that says what is guarded, how it is found, and what is answered instead.

    policy = load_policy("policy.toml")
    policy.id                               # "bank-assistant-v3@1f0c9a55d2e1", the digest of everything the file says

The file is trusted as a recipe is: it names detectors, and the addresses of those that run elsewhere. What is checked against it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ..envs.pydantic_words import error_lines, few_lines, message_of
from ..envs.registry import ID_PATTERN, did_you_mean, sought_in
from ..envs.toml_text import as_json, read_toml
from ..rpc.urls import shown_value
from .patterns import compiled
from .scripts import SCRIPTS_OF

MAX_BYTES = 1_000_000
MAX_COMPILED = 500_000
"""Instructions of RE2 that a policy's expressions may have together: a letter is one, and `\\pL{300}` a hundred thousand."""
UNTOLD = ("base_url", "address")
"""Fields whose value no error repeats: it may hold a password."""
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

Response = Literal["warn", "redact", "redirect", "refuse", "escalate"]
Action = Literal["allow", "warn", "redact", "redirect", "refuse", "escalate"]
M = TypeVar("M", bound=BaseModel)
ACTIONS: tuple[Action, ...] = get_args(Action)
"""From the mildest to the strictest; of several findings the strictest is done."""
Place = Literal["input", "output"]
ToolAction = Literal["allow", "deny", "escalate"]
ContextRole = Literal["system", "user", "tool"]

MESSAGES: dict[Response, str] = {
    "warn": "Please check this answer before you rely on it.",
    "redact": "Personal information was removed.",
    "redirect": "I cannot help with that here. Is there something else that I can do for you?",
    "refuse": "I cannot help with that.",
    "escalate": "I cannot answer this myself. A person will look at it.",
}
"""What is said where a policy has no message of its own."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]


class Category(BaseModel):
    """What is guarded: `[categories.NAME]`.

    kind: "safety", "sensitive" (information), "fairness", "security", or "own". action: what is done about a finding. where: whether what
    is asked, what is answered, or both are looked at. always_on: nothing turns it off or allows around it. enabled: false turns it off.
    message: what is said when it acts; without, the policy's own for that action.
    """

    model_config = STRICT

    kind: Literal["safety", "sensitive", "fairness", "security", "own"]
    action: Response
    where: tuple[Place, ...] = Field(default=("input", "output"), min_length=1)
    always_on: StrictBool = False
    enabled: StrictBool = True
    message: str = Field(default="", max_length=2000)

    @model_validator(mode="after")
    def _stays_on(self) -> Category:
        if self.always_on and not self.enabled:
            raise ValueError("always_on = true and enabled = false contradict each other; remove one of them")
        return self


class Rule(BaseModel):
    """What every rule has: a name, which findings give as their reason, and a category."""

    model_config = STRICT

    name: Name
    category: Name


class Topic(Rule):
    """A denied topic, found by what is said about it: `[[topics]]`.

    examples: sentences that belong to it, in every language that matters. allowed: sentences near it that do not. threshold: how likely
    it must be, by both, that a text is about a denied topic, from 0 to 1.
    """

    description: Text
    examples: tuple[Text, ...] = Field(min_length=1, max_length=1000)
    allowed: tuple[Text, ...] = Field(default=(), max_length=1000)
    threshold: float = Field(default=0.6, gt=0, le=1)


class Words(Rule):
    """Words and phrases, whatever their case and whatever parts the words of a phrase: `[[words]]`. A `*` at the end stands for any
    ending: `"bomb*"`."""

    words: tuple[Text, ...] = Field(min_length=1, max_length=10_000)


class Pattern(Rule):
    """A regular expression of RE2, which takes time in proportion to the text whatever the expression: `[[patterns]]`.

    `.` is any character, a line's end too; `[^\\n]*` is the rest of a line.
    """

    pattern: Text
    ignore_case: StrictBool = True


class Pii(BaseModel):
    """Personal and secret information: `[pii]`. kinds: what is done about each kind, such as `{ email = "redact" }`."""

    model_config = STRICT

    category: Name
    kinds: dict[Name, Response] = Field(min_length=1)


class Allowed(BaseModel):
    """What must be allowed: `[[allowed]]`. Findings of categories that are not always on do not count inside of it.

    texts: words and phrases, as in `[[words]]`. patterns: regular expressions. examples: prompts that must pass, held to by
    `burnish guard check POLICY`.
    """

    model_config = STRICT

    name: Name
    texts: tuple[Text, ...] = ()
    patterns: tuple[Text, ...] = ()
    examples: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Allowed:
        if not (self.texts or self.patterns or self.examples):
            raise ValueError("has no effect without texts, patterns or examples")
        return self


class Languages(BaseModel):
    """The languages that are spoken: `[languages]`. A text mostly in a script that none of them is written in belongs to the category."""

    model_config = STRICT

    category: Name
    spoken: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Languages:
        for language in self.spoken:
            if language not in SCRIPTS_OF:
                raise ValueError(f"the scripts of language {language!r} are not known{did_you_mean(language, sorted(SCRIPTS_OF))}")
        return self


class Grounding(BaseModel):
    """Answers that have a context must follow from it: `[grounding]`. threshold: the share of an answer's claims that it supports. context:
    roles of the messages before an answer that are its context."""

    model_config = STRICT

    category: Name
    threshold: float = Field(default=0.7, gt=0, le=1)
    context: tuple[ContextRole, ...] = Field(default=("tool",), min_length=1)


class ToolRule(BaseModel):
    """A rule about tool calls, `[[tools]]`; the first that fits decides, and what none fits is denied.

    tool: name, `*` standing for anything. arguments: expressions of RE2 that the whole of an argument must match, by name; `*` is every
    argument that is not named, and any one of them where the action is not "allow". A number is its digits, `1000` for 1e3 too; a list or
    an object is JSON. A call that lacks a named argument does not fit. `.` is a line's end too where the action is not "allow": a second
    line passes by no rule that denies, and is allowed only where `(?s)` or `\\n` says so.
    """

    model_config = STRICT

    tool: Text
    action: ToolAction
    arguments: dict[str, Text] = {}
    reason: str = Field(default="", max_length=2000)


class DetectorUse(Rule):
    """A detector of one's own, or one that runs elsewhere: `[[detectors]]`. args: its options."""

    use: str
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_an_id(self) -> DetectorUse:
        if not ID_PATTERN.match(self.use):
            raise ValueError(f"use = {self.use!r} must read namespace/name-vN, for example 'my-team/detector-v1'")
        return self


class Policy(BaseModel):
    """Everything that a policy file says. version: raised with every change that matters; the digest in `id` tells of the others too."""

    model_config = STRICT

    name: Name
    version: int = Field(ge=1)
    messages: dict[Response, Annotated[str, Field(min_length=1, max_length=2000)]] = {}
    categories: dict[Name, Category] = Field(min_length=1, max_length=256)
    topics: tuple[Topic, ...] = ()
    words: tuple[Words, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    pii: Pii | None = None
    languages: Languages | None = None
    grounding: Grounding | None = None
    detectors: tuple[DetectorUse, ...] = ()
    allowed: tuple[Allowed, ...] = ()
    tools: tuple[ToolRule, ...] | None = None

    _folder: Path = PrivateAttr(default=Path())
    _source: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _fits_together(self) -> Policy:
        used = set()
        for where, category in self._categories_named():
            if category not in self.categories:
                known = did_you_mean(category, list(self.categories))
                raise ValueError(f"{where}: there is no [categories.{category}]{known}")
            used.add(category)
        for name in self.categories:
            if name not in used:
                raise ValueError(f"categories.{name}: nothing finds it; give it topics, words, patterns, pii or a detector, or remove it")
        if self.grounding is not None and "output" not in self.categories[self.grounding.category].where:
            raise ValueError(f"grounding: has no effect, for [categories.{self.grounding.category}] does not look at output")
        for name, count in Counter(rule.name for rule in self.rules).items():
            if count > 1:
                raise ValueError(f"two rules are called {name!r}; a finding names its rule, so give each a name of its own")
        return self

    def _categories_named(self) -> Iterator[tuple[str, str]]:
        for table in ("topics", "words", "patterns", "detectors"):
            yield from ((f"{table}.{i}.category", rule.category) for i, rule in enumerate(getattr(self, table)))
        for table in ("pii", "languages", "grounding"):
            if getattr(self, table) is not None:
                yield f"{table}.category", getattr(self, table).category

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those with a name of their own."""
        return (*self.topics, *self.words, *self.patterns, *self.detectors)

    @property
    def folder(self) -> Path:
        """Where the policy's file lies, and what it names by a path, absolute; the current folder where it came from no file."""
        return self._folder

    @property
    def source(self) -> str:
        """How an error calls it: its file, or "policy NAME" where it came from none."""
        return self._source or f"policy {self.name}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the policy says, in hex: comments and the order of tables do not change it."""
        said = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()

    @cached_property
    def id(self) -> str:
        """Name, version and the beginning of the digest: what every decision names."""
        return f"{self.name}-v{self.version}@{self.digest[:12]}"

    @cached_property
    def text(self) -> str:
        """What it says, for a model that judges by it: JSON, without what detectors of one's own are told."""
        said = self.model_dump(mode="json", exclude_defaults=True, exclude={"detectors"})
        return json.dumps(said, ensure_ascii=False, indent=1)

    def message(self, category: str, action: Action) -> str:
        """What is said when a category acts; "" when nothing is done."""
        if action == "allow":
            return ""
        own = self.categories[category].message if category in self.categories else ""
        return own or self.messages.get(action) or MESSAGES[action]


def load_policy(file: str | Path, to_run: bool = True) -> Policy:
    """The policy in a file. to_run: False leaves its expressions uncompiled, for whoever only wants to know which policy it is.

    Raises ValueError, a line per problem: `policy.toml: topics.1.category: what is wrong`.
    """
    path = Path(file)
    if not os.path.isfile(path):
        what = "is a folder, not a policy file" if os.path.isdir(path) else f"there is no such policy file{sought_in(path)}"
        raise ValueError(f"{file}: {what}")
    data = read_toml(path, MAX_BYTES)
    if not data:
        raise ValueError(f"{file}: is empty; a policy has a name, a version and categories at the least")
    policy = read_policy(data, str(file), to_run)
    policy._folder, policy._source = path.resolve().parent, str(file)
    return policy


def read_policy(data: dict[str, Any], source: str = "policy", to_run: bool = True) -> Policy:
    """The policy that these tables describe. Raises ValueError as `load_policy` does, and for an expression that RE2 does not take."""
    try:
        policy = Policy.model_validate_json(as_json(data), strict=True)
    except ValidationError as error:
        raise ValueError(few_lines(f"{source}: {line}" for line in error_lines(error, _problem))) from None
    if to_run:
        _check_expressions(policy, source)
    return policy


def _check_expressions(policy: Policy, source: str) -> None:
    """Raise ValueError with the place of an expression in the policy that RE2 does not take, and where they are too many or too large."""
    places = [(f"patterns.{i}.pattern", one.pattern) for i, one in enumerate(policy.patterns)]
    places += [(f"allowed.{i}.patterns.{j}", text) for i, one in enumerate(policy.allowed) for j, text in enumerate(one.patterns)]
    places += [(f"tools.{i}.arguments.{key}", text) for i, one in enumerate(policy.tools or ()) for key, text in one.arguments.items()]
    size = 0
    for where, pattern in places:
        try:
            expression = compiled(pattern)
        except ValueError as error:
            raise ValueError(f"{source}: {where}: {error}") from None
        size += expression.programsize
        if size > MAX_COMPILED:
            raise ValueError(
                f"{source}: {where}: here the policy's expressions are larger than {MAX_COMPILED} instructions of RE2 together"
            )
        if expression.search("") is not None and not where.startswith("tools"):
            raise ValueError(f"{source}: {where}: {pattern!r:.80} matches the empty text, so it would match everywhere")


def detector_options(model: type[M], policy: Policy, use: DetectorUse) -> M:
    """The options of a detector, read as exactly as the policy. Raises ValueError, one line, with the place of what is wrong."""
    try:
        return model.model_validate_json(as_json(use.args), strict=True)
    except ValidationError as error:
        raise ValueError(_options_problem(error, policy, use)) from None


def _options_problem(error: ValidationError, policy: Policy, use: DetectorUse) -> str:
    place = f"detectors.{policy.detectors.index(use)}.args" if use in policy.detectors else f"{use.name}.args"
    return f"{policy.source}: " + few_lines(f"{place}.{line}" for line in error_lines(error, _problem)).replace("\n", "; ")


def _problem(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key{did_you_mean(str(detail['loc'][-1]), _keys_beside(detail['loc']))}"
    if detail["type"] == "value_error":
        return f"{where}: {detail['ctx']['error']}" if where else str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return f"{where}: is required"
    if where.endswith("api_key_env"):
        return f"{where}: must be the name of an environment variable, not the key"
    if where.rpartition(".")[2] in UNTOLD:
        return f"{where}: {message_of(detail)}"
    return f"{where}: {message_of(detail)}, not {shown_value(detail['input'], *detail['loc'])}"


_TABLES: dict[str, type[BaseModel]] = {
    "categories": Category,
    "topics": Topic,
    "words": Words,
    "patterns": Pattern,
    "pii": Pii,
    "languages": Languages,
    "grounding": Grounding,
    "detectors": DetectorUse,
    "allowed": Allowed,
    "tools": ToolRule,
}


def _keys_beside(where: tuple[int | str, ...]) -> list[str]:
    model = Policy if len(where) == 1 else _TABLES.get(str(where[0]), Policy)
    return list(model.model_fields)
