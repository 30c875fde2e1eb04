"""A mistake in a user's code is said once, with the user's own lines and none of burnish's: where it raises, hangs, or does not import."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from burnish.cli.errors import report
from burnish.cli.main import app
from burnish.envs.checks.conformance import Check, Report, render
from burnish.envs.failures import EpisodeFailure, short_traceback
from burnish.envs.named import attributed, each_of, try_environment
from burnish.envs.registry import load_plugin
from burnish.rewards.checks.reward import sample_episodes
from burnish.rewards.plugin import make_scorer
from burnish.trainer.objectives.registry import find_advantage

pytestmark = pytest.mark.unit

MINE = """import json
import time

from burnish import RewardInput, reward
from burnish.envs import register_env


def helper(text):
    return json.loads(text)


@reward("own-mistakes/raises-v1")
def raises(episode: RewardInput) -> float:
    return helper("no JSON")


@reward("own-mistakes/exits-v1")
def exits(episode: RewardInput) -> float:
    raise SystemExit(3)


@reward("own-mistakes/hangs-v1", timeout_s=0.3)
def hangs(episode: RewardInput) -> float:
    time.sleep(5)
    return 0.0


@register_env("own-mistakes/Gauge-v0")
def make():
    raise KeyError("gauge")


def stock(batch):
    return batch.shelf


def rows(count):
    yield "one"
    raise KeyError("two")
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("own") / "mine.py"
    written.write_text(MINE)
    load_plugin(written)
    return written


def module_of(file: Path) -> ModuleType:
    return sys.modules[load_plugin(file)]


def at(file: Path, text: str, name: str) -> str:
    """The line of a traceback that shows this line of the file."""
    return f"  at {file}:{MINE.splitlines().index(text) + 1} in {name}"


@pytest.mark.parametrize(
    ("id", "says", "places"),
    [
        (
            "raises",
            "JSONDecodeError: Expecting value",
            [('    return helper("no JSON")', "raises"), ("    return json.loads(text)", "helper")],
        ),
        ("exits", "RuntimeError: the reward function raised SystemExit: 3", [("    raise SystemExit(3)", "exits")]),
        ("hangs", "no answer within 0.3 s", [("    time.sleep(5)", "hangs")]),
    ],
)
def test_a_reward_that_fails_shows_its_own_lines_only(file: Path, id: str, says: str, places: list[tuple[str, str]]) -> None:
    with pytest.raises(EpisodeFailure) as caught:
        asyncio.run(make_scorer(f"own-mistakes/{id}-v1").score(sample_episodes(1)[0]))
    first, *rest = caught.value.failure.detail.splitlines()
    assert says in first
    assert rest == [at(file, *place) for place in places]


def test_where_burnish_itself_fails_its_lines_are_shown() -> None:
    with pytest.raises(ValueError) as caught:
        load_plugin("no_such_file.py")
    inner = ValueError("x").with_traceback(caught.value.__traceback__.tb_next if caught.value.__traceback__ else None)
    assert re.fullmatch(r"ValueError: x\n  at .*/envs/registry\.py:\d+ in load_plugin", short_traceback(inner))


def test_code_that_a_user_names_is_named_when_it_raises(file: Path) -> None:
    with pytest.raises(ValueError) as caught:
        find_advantage(f"{file}:stock", {})(object())
    assert str(caught.value).startswith(f"advantage '{file}:stock': AttributeError: 'object' object has no attribute 'shelf'\n")
    assert str(caught.value).endswith(at(file, "    return batch.shelf", "stock"))

    rows = each_of(module_of(file).rows(3), "sft.generate: mine.py:rows")
    with pytest.raises(ValueError) as caught:
        list(rows)
    place = at(file, '    raise KeyError("two")', "rows")
    assert str(caught.value) == f"sft.generate: mine.py:rows: KeyError: 'two'\n{place}"

    with pytest.raises(ValueError) as caught:
        try_environment("own-mistakes/Gauge-v0", {})
    place = at(file, '    raise KeyError("gauge")', "make")
    assert str(caught.value) == f"environment 'own-mistakes/Gauge-v0' cannot be made: KeyError: 'gauge'\n{place}"


def test_whoever_attributes_takes_nothing_from_what_went_well() -> None:
    with attributed("x"):
        assert list(each_of([1, 2], "x")) == [1, 2]


def test_a_fault_in_the_users_code_is_not_called_one_of_burnish(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError) as caught:
        module_of(file).stock(object())
    assert report(caught.value) == 1
    shown = capsys.readouterr().err
    assert at(file, "    return batch.shelf", "stock") in shown and "fault in burnish" not in shown


def test_what_several_checks_found_is_said_once() -> None:
    fault = "KeyError: 'x'\n  at mine.py:3 in step"
    checks = (
        Check("gymnasium", "fail", fault),
        Check("info", "fail", "no dict"),
        Check("hostile text", "fail", f"the reply '' makes step fail: {fault}"),
        Check("spec", "pass", "fine"),
        Check("close", "fail", fault),
        Check("order", "skip", "it needs scores"),
        Check("threads", "skip", "it needs scores"),
    )
    assert render(Report("a/B-v0", checks)) == (
        "a/B-v0: FAILED\n"
        "  FAIL  gymnasium     KeyError: 'x'\n"
        "                        at mine.py:3 in step\n"
        "                      the same in 2 more: hostile text, close\n"
        "  FAIL  info          no dict\n"
        "  ok    spec          fine\n"
        "  skip  order         it needs scores\n"
        "                      the same in 1 more: threads"
    )


def test_rows_that_fail_alike_are_said_once(file: Path, tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "7"}]}\n'
    (tmp_path / "answers.jsonl").write_text(row * 13)
    tried = CliRunner().invoke(app, ["rewards", "try", "own-mistakes/raises-v1", str(tmp_path / "answers.jsonl"), "--plugin", str(file)])
    assert tried.exit_code == 1
    assert tried.stdout.count("JSONDecodeError") == 1
    last = tried.stdout.splitlines()[-1].replace(f"{tmp_path}/", "")
    named = ", ".join(f"answers.jsonl:{n}" for n in range(2, 12))
    assert last == f"    the same in 12 more: {named} and 2 more"


def test_what_keeps_a_file_from_being_imported_is_the_only_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.recipe.components import check_components
    from burnish.recipe.load import config_from_data
    from burnish.recipe.resolve import resolve

    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    recipe = {"name": "x", "model": "m", "environment": "own-broken/A-v0", "reward_function": "own-broken/b-v1", "plugins": ["broken.py"]}
    with pytest.raises(ValueError) as caught:
        check_components(resolve(config_from_data(recipe)))
    place = f"(at {tmp_path / 'broken.py'}:1)"
    assert str(caught.value) == f"plug-in broken.py failed to import: ModuleNotFoundError: No module named 'no_such_thing' {place}"


def test_a_suggestion_that_may_be_the_misspelt_id_says_so() -> None:
    from burnish.recipe.load import config_from_data

    recipe = {"name": "x", "model": "m", "environment": "a/B-v0", "reward_function": "mine/answr-v1", "success": "answer"}
    with pytest.raises(ValueError, match="no reward gives a part 'answer'; did you mean 'answr', of 'mine/answr-v1'\\?"):
        config_from_data(recipe)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["check", "folder"], "folder is a folder; give a plug-in file (my_file.py) or a module"),
        (["check", "empty.toml"], "empty.toml is no Python file; give a plug-in file (my_file.py) or a module"),
        (["check", "no_id.py"], "reward: the decorator takes an id in parentheses, ('my-team/reward-v1') (at {here}/no_id.py:2)"),
        (
            ["check", "no_env_id.py"],
            "environment: the decorator takes an id in parentheses, ('my-team/environment-v1') (at {here}/no_env_id.py:2)",
        ),
        (["run", "empty.toml", "--dry-run"], "empty.toml: is empty; a recipe has a name, a model and an environment at the least"),
        (["run", "twice.toml", "--dry-run"], "Cannot overwrite a value (at line 2, column 11); the key stands there a second time"),
        (["run", "twise.toml", "--dry-run"], "recipe twise.toml does not exist; did you mean twice.toml?"),
        (["run", "folder/b.toml", "--dry-run"], "recipe folder/b.toml does not exist\n"),
        (["guard", "check", "kinds.toml"], "kinds.toml: pii.kinds.ibn: there is no such kind; did you mean 'iban'?"),
        (["guard", "check", "detector.toml"], "detector.toml: detectors.0.use: detector 'a/shouting-v1'"),
        (["check", "tools.py", "--arg", "data=abc"], "--arg data: has to be a table, data={shelf={bolts=3}}, and is 'abc'"),
        (["check", "tools.py", "--arg", "data=[[1,2]]"], "--arg data: has to be a table, data={shelf={bolts=3}}, and is [[1, 2]]"),
        (["run", "b.toml", "--dry-run"], "b.toml: rft.max_turns: unknown key: max_turns stands in the table rollout"),
        (["rewards", "try", "a/b-v1", "x.jsonl", "--arg", "limit"], "nothing is registered under 'a'"),
        (["env", "check", "burnish/Taxi-v0", "--arg", "limit"], "--arg limit: must read key=value"),
        (["guard", "check", "empty.toml", "--text", "x"], "empty.toml: is empty; a policy has a name"),
        (["guard", "check", "folder", "--text", "x"], "folder: is a folder, not a policy file"),
        (["data", "check", "empty.jsonl"], "empty.jsonl: no row in it; give files that have some"),
        (["run", "runs/none", "--resume"], "runs/none is not there; --resume continues a run folder"),
        (["keys", "list", "keys.toml"], "keys file keys.toml: keys.a.sha: unknown key; did you mean 'sha256'?"),
    ],
)
def test_mistakes_of_a_newcomer_are_one_line(arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "twice.toml").write_text('name = "a"\nname = "b"\n')
    (tmp_path / "b.toml").write_text('name = "a"\nmodel = "m"\nenvironment = "a/B-v0"\n[rft]\nsteps = 2\nmax_turns = 3\n')
    bank = 'name = "bank"\nversion = 1\n[categories.a]\nkind = "own"\naction = "refuse"\n'
    (tmp_path / "kinds.toml").write_text(f'{bank}[pii]\ncategory = "a"\nkinds = {{ ibn = "redact" }}\n')
    (tmp_path / "detector.toml").write_text(f'{bank}[[detectors]]\nuse = "a/shouting-v1"\nname = "loud"\ncategory = "a"\n')
    (tmp_path / "tools.py").write_text(
        "from burnish import tool\n@tool\ndef f(a: int) -> str:\n    'Say.\\n\\n    Args:\\n        a: it.'\n    return ''\n"
    )
    (tmp_path / "keys.toml").write_text('[keys.a]\nsha = "x"\n')
    (tmp_path / "no_id.py").write_text("from burnish import reward\n@reward\ndef f(e):\n    return 1.0\n")
    (tmp_path / "no_env_id.py").write_text("from burnish.envs import register_env\n@register_env\ndef f():\n    return 1.0\n")
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 2
    assert line.replace("{here}", str(tmp_path)) in made.stderr and made.stderr.count("\n") == 1, made.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--foo"], "no such option: --foo (`burnish --help`)"),
        (["rnu"], "no such command 'rnu'; did you mean 'run'? (`burnish --help`)"),
        (["run"], "missing argument 'RECIPE' (`burnish run --help`)"),
        (["run", "a", "b", "c"], "got unexpected extra argument(s) (b c) (`burnish run --help`)"),
        (["run", "x.toml", "--set"], "option '--set' requires an argument (`burnish run --help`)"),
        (["models", "imprt"], "no such command 'imprt'; did you mean 'import'? (`burnish models --help`)"),
        (["models", "import", "--zz"], "no such option: --zz (`burnish models import --help`)"),
        (["serve", "x", "--port", "99999"], "invalid value for '--port': must be less than or equal to 65535 (`burnish serve --help`)"),
        (
            ["run", "x", "--platform", "tpu"],
            "invalid value for '--platform': 'tpu' is not one of 'auto', 'cpu', 'gpu' (`burnish run --help`)",
        ),
    ],
)
def test_usage_errors_are_one_line_that_names_the_help(arguments: list[str], line: str) -> None:
    made = CliRunner().invoke(app, arguments, prog_name="burnish")
    assert (made.exit_code, made.stderr, made.stdout) == (2, f"error: {line}\n", "")


@pytest.mark.parametrize("group", [[], ["models"]])
def test_a_group_without_a_command_shows_its_help(group: list[str]) -> None:
    made = CliRunner().invoke(app, group)
    assert made.exit_code == 2 and "Commands:" in made.output


def test_an_unknown_key_is_said_before_what_is_missing_for_it() -> None:
    from burnish.serving.deployment import parse_deployment

    with pytest.raises(ValueError, match=r"d\.toml: models\.m\.versions\.v1\.modle: unknown key; did you mean 'model'\?"):
        parse_deployment('[models.m.versions.v1]\nmodle = "x"\n', "d.toml")


def test_what_is_no_parquet_is_not_read_as_text(tmp_path: Path) -> None:
    from burnish.envs.rows import read_rows

    (tmp_path / "a.parquet").write_bytes(b"\xf5\x00" * 50)
    with pytest.raises(ValueError, match="is no Parquet file"):
        list(read_rows(tmp_path / "a.parquet"))


def test_what_a_client_garbles_is_one_line_in_a_servers_log() -> None:
    import logging

    from google.protobuf.message import DecodeError

    from burnish.hosting.services import _Formatter

    def logged(error: Exception) -> str:
        record = logging.LogRecord("grpc", logging.ERROR, "x.py", 1, "Unexpected error in %s", ("Verify",), (type(error), error, None))
        return _Formatter("%(levelname)s %(message)s").format(record)

    assert logged(DecodeError("wire")) == "ERROR Unexpected error in Verify"
    assert logged(KeyError("own")) == "ERROR Unexpected error in Verify\nKeyError: 'own'"


def test_a_service_that_says_what_is_wrong_is_quoted_and_one_that_does_not_shows_its_log(tmp_path: Path) -> None:
    from burnish.hosting.process import _explained

    log = tmp_path / "service.log"
    log.write_text("of an earlier start\n")
    before = log.stat().st_size
    with log.open("a") as file:
        file.write("error: 'answers.py:anser': there is no 'anser'; did you mean 'answer'?\n")
    assert _explained("ended with code 2", log, before) == "'answers.py:anser': there is no 'anser'; did you mean 'answer'?"
    log.write_text("Segmentation fault\n")
    assert _explained("ended with code -11", log, 0) == f"it ended with code -11; the end of {log}:\n  Segmentation fault"
