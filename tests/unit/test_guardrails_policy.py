"""A guardrail policy: what it may say, what is wrong with it in one line, and the digest that names it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.guard_policy import TOML, policy, tables

from burnish.envs import toml_text
from burnish.envs.tools import ToolContext, tool
from burnish.guardrails import policy as policy_module
from burnish.guardrails.guard import Guard
from burnish.guardrails.patterns import compiled
from burnish.guardrails.policy import MESSAGES, Policy, load_policy, read_policy
from burnish.guardrails.tool_calls import check_call

pytestmark = pytest.mark.unit


def test_the_digest_is_of_what_is_said_not_of_how_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f"# a comment\n{TOML}")
    assert load_policy(file).id == policy().id
    assert policy().id.startswith("bank-v3@") and len(policy().id.partition("@")[2]) == 12
    assert policy(version=4).digest != policy().digest
    softer = tables()
    softer["topics"][0]["threshold"] = 0.61
    assert read_policy(softer).digest != policy().digest


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The tables with one value changed."""
    made = here = tables()
    for key in path[:-1]:
        here = here[key]  # type: ignore[index]
    here[path[-1]] = to  # type: ignore[index]
    return made


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (changed("topics", 0, "category", to="weapon"), "topics.0.category: there is no [categories.weapon]; did you mean 'weapons'?"),
        (changed("wrods", to=[]), "wrods: unknown key; did you mean 'words'?"),
        (changed("topics", 0, "exampels", to=[]), "topics.0.exampels: unknown key; did you mean 'examples'?"),
        (
            changed("patterns", 0, "pattern", to="(?=a)b"),
            "patterns.0.pattern: '(?=a)b' is no expression of RE2: invalid perl operator: (?=",
        ),
        (changed("patterns", 0, "pattern", to="a*"), "patterns.0.pattern: 'a*' matches the empty text, so it would match everywhere"),
        (changed("tools", 0, "arguments", "path", to="("), "tools.0.arguments.path: '(' is no expression of RE2: missing ): ("),
        (
            changed("categories", "weapons", "enabled", to=False),
            "categories.weapons: always_on = true and enabled = false contradict each other; remove one of them",
        ),
        (
            changed("categories", "idle", to={"kind": "own", "action": "refuse"}),
            "categories.idle: nothing finds it; give it topics, words, patterns, pii or a detector, or remove it",
        ),
        (
            changed("words", 1, "name", to="agents"),
            "two rules are called 'agents'; a finding names its rule, so give each a name of its own",
        ),
        (
            changed("languages", to={"category": "rivals", "spoken": ["en", "dee"]}),
            "languages: the scripts of language 'dee' are not known; did you mean 'de'?",
        ),
        (changed("categories", "weapons", "always_on", to="yes"), "categories.weapons.always_on: must be true or false, not 'yes'"),
        (changed("version", to=0), "version: must be greater than or equal to 1, not 0"),
        (changed("version", to="1"), "version: must be an integer, not '1'"),
        (changed("topics", 0, "threshold", to="0.6"), "topics.0.threshold: must be a number, not '0.6'"),
        (changed("topics", 0, "threshold", to=True), "topics.0.threshold: must be a number, not True"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(data: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_policy(data, "policy.toml")
    assert str(caught.value) == f"policy.toml: {line}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"name =", "not TOML"),
        (b"\xff", "not UTF-8 text"),
        (b"# nothing\n", "is empty"),
        (b"#" * 1_000_001, "1000001 bytes; it may have at most 1000000"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=line):
        load_policy(file)
    with pytest.raises(ValueError, match="there is no such policy file"):
        load_policy(tmp_path / "absent.toml")


def test_a_category_speaks_in_its_own_words_or_the_policys() -> None:
    assert policy().message("rivals", "redirect") == "I can only speak about our own accounts."
    assert policy().message("weapons", "refuse") == "I cannot help with that."
    assert policy().message("risk", "warn") == MESSAGES["warn"]
    assert policy().message("risk", "allow") == ""


@pytest.mark.parametrize(
    ("tool", "arguments", "action", "rule"),
    [
        ("read_file", {"path": "/data/reports"}, "allow", 0),
        ("read_file", {"path": "/data/../etc"}, "deny", None),
        ("read_file", {"path": "/data/a\n/etc"}, "deny", None),
        ("read_file", {}, "deny", None),
        ("read_file", {"path": ["/data/a"]}, "deny", None),
        ("transfer", {"amount": 5}, "escalate", 1),
        ("transfer_all", {}, "deny", None),
    ],
)
def test_the_first_rule_about_a_tool_that_fits_decides_and_the_default_is_no(
    tool: str, arguments: dict[str, Any], action: str, rule: int | None
) -> None:
    decided = check_call(policy(), tool, arguments)
    assert (decided.action, decided.rule) == (action, rule)


def test_the_star_is_every_argument_that_has_no_rule_of_its_own() -> None:
    only: Policy = policy(tools=[{"tool": "add", "action": "allow", "arguments": {"note": ".*", "*": "[0-9]+"}}])
    assert check_call(only, "add", {"note": "anything", "a": 1, "b": "2"}).action == "allow"
    assert check_call(only, "add", {"note": "anything", "a": 1, "shell": "rm"}).action == "deny"


@pytest.mark.parametrize("action", ["deny", "escalate"])
def test_a_rule_that_forbids_by_the_star_fits_where_any_argument_does(action: str) -> None:
    forbidden = {"tool": "post", "action": action, "arguments": {"to": ".*", "*": "(?i).*password.*"}}
    rules = [forbidden, {"tool": "post", "action": "allow"}]
    for rest, decided in (
        ({"text": "my password is x"}, action),
        ({"text": "my password is x", "note": "hi"}, action),
        ({"note": "hi"}, "allow"),
        ({}, "allow"),
    ):
        assert check_call(policy(tools=rules), "post", {"to": "password", **rest}).action == decided


@pytest.mark.parametrize("value", ["rm " + "x" * 100_000, ["rm", "x" * 100_000]])
def test_a_call_too_long_to_be_looked_at_passes_by_no_rule(value: Any) -> None:
    rules = [{"tool": "run", "action": "deny", "arguments": {"command": "rm.*"}}, {"tool": "*", "action": "allow"}]
    decided = check_call(policy(tools=rules), "run", {"command": value})
    assert (decided.action, decided.rule) == ("deny", None)
    assert decided.reason == "argument 'command' is longer than 100000 characters, too long to be looked at"
    assert check_call(policy(tools=rules), "run", {"command": "x" * 100_000}).action == "allow"
    assert check_call(policy(tools=rules), "look", {"at": value}).action == "deny", "whichever argument, and whatever the tool"


@pytest.mark.parametrize("action", ["deny", "escalate"])
def test_a_second_line_does_not_hide_from_a_rule_that_forbids_and_is_not_allowed_unsaid(action: str) -> None:
    rules = [{"tool": "run", "action": action, "arguments": {"command": ".*rm -rf.*"}}, {"tool": "run", "action": "allow"}]
    assert check_call(policy(tools=rules), "run", {"command": "true\nrm -rf /"}).action == action
    assert check_call(policy(tools=rules), "run", {"command": "true\nls"}).action == "allow"
    only = [{"tool": "run", "action": "allow", "arguments": {"command": "ls .*", "note": "(?s).*"}}]
    assert check_call(policy(tools=only), "run", {"command": "ls a", "note": "a\nb"}).action == "allow"
    assert check_call(policy(tools=only), "run", {"command": "ls a\nrm -rf /", "note": ""}).action == "deny"


@pytest.mark.parametrize("written", ["1000", "1e3", "1E+3", "1000.0", "1.0e03", "10000e-1"])
def test_equal_numbers_are_one_to_every_rule(written: str) -> None:
    arguments = json.loads(f'{{"amount": {written}, "parts": [{{"n": {written}}}]}}')
    for pattern in ({"amount": "1000"}, {"parts": r'\[\{"n": 1000\}\]'}):
        rules = [{"tool": "pay", "action": "deny", "arguments": pattern}, {"tool": "pay", "action": "allow"}]
        assert check_call(policy(tools=rules), "pay", arguments).action == "deny"
    only = [{"tool": "pay", "action": "allow", "arguments": {"amount": "[0-9]{1,3}", "parts": ".*"}}]
    assert check_call(policy(tools=only), "pay", arguments).action == "deny"


@pytest.mark.parametrize(
    ("number", "said"),
    [("-0", "0"), ("-0.0", "0"), ("-0e5", "0"), ("-1e2", "-100"), ("1e-7", "0.0000001"), ("12.50", "12.5"), ("1.5e-0003", "0.0015"),
     ("9007199254740993", "9007199254740993"), ("9.223372036854775808e18", "9223372036854775808"), ("true", "true"), ("null", "null")],
)  # fmt: skip
def test_a_number_is_held_against_a_rule_in_digits(number: str, said: str) -> None:
    only = [{"tool": "pay", "action": "allow", "arguments": {"amount": re.escape(said)}}]
    assert check_call(policy(tools=only), "pay", json.loads(f'{{"amount": {number}}}')).action == "allow"


@tool
def pay(amount: int = 0, rate: float = 0.0, now: bool = False, parts: list[int] | None = None) -> str:
    return "paid"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        *(
            ({"amount": text}, "[0-9]{4,}")
            for text in ("1000", "1_000", " 1000", "1000\n", "1000.0", "+1000", "01000", "9007199254740993.0")
        ),
        ({"amount": "9007199254740993.0"}, "9007199254740993"),
        ({"amount": True}, "1"),
        ({"amount": "-0"}, "0"),
        *(({"rate": text}, "1000") for text in ("1e3", "1_000.0", "+1e+3 ", "999.99999999999999999", "1000.")),
        ({"rate": True}, "1"),
        ({"rate": 9007199254740993}, "9007199254740992"),
        ({"rate": "1e-3"}, r"0\.001"),
        *(({"now": text}, "true") for text in ("True", "yes", "ON", "1", "t", 1, 1.0)),
        *(({"now": text}, "false") for text in ("no", "F", "0", 0, -0.0)),
        ({"parts": ["1_000", 2]}, r"\[1000, 2\]"),
    ],
)
def test_a_rule_that_forbids_sees_what_a_tool_makes_of_an_argument(arguments: dict[str, Any], pattern: str) -> None:
    (name,) = arguments
    bound = pay.bind(arguments, ToolContext("train-1/0", seed=1))[name]
    forbidden = [{"tool": "pay", "action": "deny", "arguments": {name: pattern}}, {"tool": "pay", "action": "allow"}]
    for value in (arguments[name], json.loads(json.dumps(bound))):
        assert check_call(policy(tools=forbidden), "pay", {name: value}).action == "deny"


@pytest.mark.parametrize("value", ["1_000", "1000.0", True, "yes", " 1000", "12 pieces", ["1_000"]])
def test_a_rule_that_allows_sees_an_argument_as_it_is(value: Any) -> None:
    only = [{"tool": "pay", "action": "allow", "arguments": {"amount": r"1000|1|\[1000\]"}}]
    assert check_call(policy(tools=only), "pay", {"amount": value}).action == "deny"


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (["rm\t-rf"], r".*rm\s+-rf.*"),
        ({"c": 'say "yes"'}, r'.*say "yes".*'),
        ([["C:\\Windows"]], r".*C:\\Windows.*"),
        (["rm\n-rf"], ".*rm.-rf.*"),
    ],
)
def test_a_text_within_a_list_is_what_the_tool_gets(value: Any, pattern: str) -> None:
    rules = [{"tool": "run", "action": "deny", "arguments": {"command": pattern}}, {"tool": "run", "action": "allow"}]
    assert check_call(policy(tools=rules), "run", {"command": value}).action == "deny"


def test_an_allowed_list_hides_no_second_line_and_no_second_text() -> None:
    only = [{"tool": "run", "action": "allow", "arguments": {"command": r'\["ls [^"]*"\]|\["cat .*"\]'}}]
    assert check_call(policy(tools=only), "run", {"command": ["ls a"]}).action == "allow"
    assert check_call(policy(tools=only), "run", {"command": ['ls a", "rm']}).action == "deny"
    assert check_call(policy(tools=only), "run", {"command": ["cat a\nrm -rf /"]}).action == "deny"


def test_a_pattern_finds_over_lines_and_what_is_allowed_ends_with_its_line() -> None:
    rule = {"name": "killing", "category": "rivals", "pattern": "kill.{1,9}them"}
    guard = Guard(policy(patterns=[rule], allowed=[{"name": "play", "patterns": ["play: .*"]}]))
    assert guard.check("kill\nall of\nthem", "input").action == "redirect"
    assert guard.check("play: kill all of them", "input").action == "allow"
    assert guard.check("play: chess\nkill all of them", "input").action == "redirect"


def test_a_policy_without_rules_about_tools_says_nothing_about_them() -> None:
    assert check_call(policy(tools=None), "anything", {}).action == "allow"
    assert check_call(policy(tools=[]), "anything", {}).action == "deny"


def test_tables_too_deep_are_no_policy_and_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "deep.toml"
    file.write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ValueError, match=r"deep\.toml: not TOML"):
        load_policy(file)


def test_the_options_of_a_detector_are_told_in_one_line_with_their_place() -> None:
    use = {"name": "judge", "category": "weapons", "use": "burnish/verifier-v1"}
    with pytest.raises(ValueError) as told:
        Guard(policy(detectors=[use]))
    assert str(told.value) == "policy bank: detectors.0.args.address: is required"


@pytest.mark.parametrize(("tool", "arguments"), [("run", {"command": "rm \ud800"}), ("run", {"a": ["\ud800"]}), ("run\ud800", {})])
def test_a_call_that_utf8_cannot_hold_passes_by_no_rule(tool: str, arguments: dict[str, Any]) -> None:
    rules = [{"tool": "run", "action": "deny", "arguments": {"command": "rm.*"}}, {"tool": "*", "action": "allow"}]
    decided = check_call(policy(tools=rules), tool, arguments)
    assert (decided.action, decided.rule) == ("deny", None)
    assert f"{decided.tool}{decided.reason}".encode()


@pytest.mark.parametrize(
    "line", ["a." * 40 + "a = 1", "[" + "a . " * 40 + "a]", "x = {" + '"a".' * 40 + "'a' = 1}", '"\\"".' * 40 + "a = 1"]
)
def test_a_key_of_many_parts_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """tomllib takes the square of their number: 5 s for 16,000 parts."""
    monkeypatch.setattr(tomllib, "loads", lambda text: pytest.fail("it was read"))
    file = tmp_path / "long.toml"
    file.write_text(f"# a comment\n{line}\n")
    with pytest.raises(ValueError, match=r"long\.toml: not TOML: a key of more than 32 parts \(at line 2\)"):
        load_policy(file)


def test_what_looks_for_long_keys_reads_any_text_once() -> None:
    for text in (
        "a" * 300_000,
        '"' * 300_000,
        "a " * 150_000,
        "a.  " * 31 + "b" * 300_000,
        "'a" * 150_000,
        '"' + '\\"' * 150_000,
        '"\\\\' * 100_000,
    ):
        toml_text._LONG_KEY.search(text)  # a square of these is minutes: the test's own time limit ends it


def test_expressions_that_are_large_together_are_refused_at_the_first_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    def counted(pattern: str) -> Any:
        made.append(pattern)
        return compiled(pattern)

    monkeypatch.setattr(policy_module, "compiled", counted)
    rules = [{"name": f"r{i}", "category": "rivals", "pattern": rf"\pL{{100}}x{i}"} for i in range(60)]
    with pytest.raises(ValueError, match=r"patterns\.[0-9]\.pattern: here the policy's expressions are larger than 500000 instructions"):
        policy(patterns=rules)
    assert len(made) < 10


def test_which_policy_it_is_needs_no_expression_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.toml"
    file.write_text(TOML)
    known = load_policy(file).id
    monkeypatch.setattr(policy_module, "compiled", lambda pattern: pytest.fail("it was compiled"))
    assert load_policy(file, to_run=False).id == known


@pytest.mark.parametrize(
    ("use", "args", "line"),
    [
        ("verifier", {"address": "127.0.0.1:1", "deadline_s": "3"}, "deadline_s: must be a number, not '3'"),
        ("verifier", {"address": "127.0.0.1:1", "below": True}, "below: must be a number, not True"),
        ("judge", {"model": "m", "retries": "1"}, "retries: must be an integer, not '1'"),
        ("judge", {"model": "m", "sampling_params": {"temperature": True}}, "sampling_params.temperature: must be a number, not True"),
    ],
)
def test_no_option_of_a_detector_is_made_of_what_is_none(use: str, args: dict[str, Any], line: str) -> None:
    written = {"name": "asked", "category": "weapons", "use": f"burnish/{use}-v1", "args": args}
    with pytest.raises(ValueError) as told:
        Guard(policy(detectors=[written]))
    assert str(told.value) == f"policy bank: detectors.0.args.{line}"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"api_key_env": "sk-proj-SECRET"}, "api_key_env: must be the name of an environment variable, not the key"),
        ({"base_url": "http//me:SECRET@judge.example/v1"}, "base_url: must match '^https?://'"),
    ],
)
def test_an_error_repeats_no_key_and_no_password(args: dict[str, Any], line: str) -> None:
    use = {"name": "judge", "category": "weapons", "use": "burnish/judge-v1", "args": {"model": "m", **args}}
    with pytest.raises(ValueError) as told:
        Guard(policy(detectors=[use]))
    assert "SECRET" not in str(told.value) and str(told.value).startswith("policy bank: detectors.0.args.")
    assert line.partition(":")[0] in str(told.value)


def test_what_a_policy_names_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy read by a relative path is sent to a process with another current folder."""
    (tmp_path / "policy.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    assert load_policy("policy.toml").folder == tmp_path.resolve()
