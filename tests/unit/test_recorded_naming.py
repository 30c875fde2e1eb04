"""What a recipe of a run folder may name: whatever else a field holds, code, an address, a secret or a file elsewhere is refused in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from burnish.envs.named import load_function
from burnish.recipe.config import RunConfig
from burnish.recipe.named import ADDRESS, CODE, OUTSIDE, SECRET, _texts, meaning_of
from burnish.recipe.recorded import load_recipe, recorded_setup
from burnish.rewards.aws.handlers import HandlerSettings, load_handler
from burnish.rewards.aws.reward_lambda import LambdaOptions
from burnish.rewards.builtin.guardrail import GuardrailOptions
from burnish.rewards.graders.detector import JudgeOptions
from burnish.rewards.graders.plugin import GraderOptions
from burnish.rewards.remote.detector import VerifierOptions
from burnish.rpc.address import Endpoint

pytestmark = pytest.mark.unit

BASE = 'name = "r"\nmodel = "tiny"\nenvironment = "burnish/Arithmetic-v0"\n'
REWARD = '[[rewards]]\nname = "v"\nuse = "burnish/reward-lambda-v1"\nargs = { handler = "HANDLER" }\n'
DEPLOYMENT = '[service]\nport = 8000\n\n[models.m.versions.v1]\nmodel = "runs/m"\n'
SUITE = 'id = "x/y-v1"\nabout = "See https://h.example/y."\nrows = "rows.jsonl"\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder from elsewhere, below the folder that burnish is started in, where files lie that are none of the run's."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "runs" / "r"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "corpus").mkdir()
    for name in ("config.json", "seeds.json"):
        (home / name).write_text("{}")
    for place in (home, tmp_path):
        (place / "rows.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}\n')
    (home / "sub" / "mine.jsonl").write_text("")
    (tmp_path / "beside.toml").write_text(SUITE)
    (tmp_path / "outside.jsonl").write_text("")
    for place in (home, tmp_path):
        (place / "deployment.toml").write_text(DEPLOYMENT)
    return home


def fields(model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Every field of a schema that takes a text that is none of a few: where it is ("0" in a list, "k" in a table), and its pattern."""
    schema = model.model_json_schema()

    def below(node: dict[str, Any], at: tuple[str, ...], seen: frozenset[str]) -> Iterator[tuple[tuple[str, ...], str | None]]:
        if (name := node.get("$ref", "").rpartition("/")[2]) and name not in seen:
            yield from below(schema["$defs"][name], at, seen | {name})
        for one in [*node.get("anyOf", []), *node.get("oneOf", [])]:
            yield from below(one, at, seen)
        if node.get("type") == "string" and "enum" not in node and "const" not in node:
            yield at, node.get("pattern")
        for key, one in node.get("properties", {}).items():
            yield from below(one, (*at, key), seen)
        further = node.get("additionalProperties")
        if further is True:
            yield (*at, "k"), None
        elif isinstance(further, dict):
            yield from below(further, (*at, "k"), seen)
        if isinstance(node.get("items"), dict):
            yield from below(node["items"], (*at, "0"), seen)

    yield from below(schema, (), frozenset())


def nested(at: tuple[str, ...], text: str) -> Any:
    """Plain data with a text at a place."""
    value: Any = text
    for key in reversed(at):
        value = [value] if key == "0" else {key: value}
    return value


OPTIONS = (LambdaOptions, GraderOptions, GuardrailOptions, JudgeOptions, VerifierOptions)
PLACES = [*fields(RunConfig), *((("rewards", "0", "args", *at), form) for model in OPTIONS for at, form in fields(model))]
LAMBDA = ("arn:aws:lambda:us-east-1:999999999999:function:f", "lambda:reward-f", "lambda:f:live")
ADDRESSES = (
    "evil.example:50051",
    "127.0.0.1:0000041267",
    "a:1,b:2",
    "ray:verdicts",
    "https://evil.example/x",
    "s3://evil/x.jsonl",
    *LAMBDA,
)
NAMES = {
    CODE: ("evilmod:f", "evil mod.py:f", "x.py", "evilmod:a/Env-v0", "service:f"),
    ADDRESS: ADDRESSES,
    OUTSIDE: ("PLACE/outside.jsonl", "outside.jsonl", "../../elsewhere.jsonl", "./beside.toml", "~/.ssh/id_rsa"),
}  # fmt: skip
REPLACED = {("environment_args", "k"), ("rewards", "0", "verifier"), *((*at, "environment_args", "k") for at in [("rft", "blend", "0")])}
REPLACED |= {("phases", "0", "blend", "0", "environment_args", "k")}


def test_every_text_of_a_recipe_that_names_something_is_told(run: Path) -> None:
    assert len(PLACES) > 100 and ("tasks", "train") in dict(PLACES) and ("retention", "suites", "0") in dict(PLACES)
    missed = []
    for at, form in PLACES:
        for meaning, texts in NAMES.items():
            for text in (one.replace("PLACE", str(run.parent.parent)) for one in texts):
                if (form is not None and not re.search(form, text)) or (text.startswith("service:") and at in REPLACED):
                    continue
                told = {meaning_of(one, run) for one in _texts(nested(at, text)) if not one.is_key}
                if told == {None} and not (at == ("model",) and meaning == OUTSIDE):
                    missed.append((".".join(at), text))
        if at[-1].endswith(("_env", "token_file")):
            assert {meaning_of(one, run) for one in _texts(nested(at, "MY_SECRET")) if not one.is_key} == {SECRET}, at
    assert not missed


def test_what_says_where_a_secret_is_read_is_told_by_what_it_is_called(run: Path) -> None:
    def told(said: dict[str, Any]) -> set[str | None]:
        return {meaning_of(one, run) for one in _texts({"environment_args": said}) if not one.is_key}

    named: list[dict[str, Any]] = [{"password_file": "pw"}, {"secrets": {"env": "NAME", "db_file": "pw"}}, {"pwdEnv": "NAME"}]
    plain: list[dict[str, Any]] = [{"env": "cartpole"}, {"file": "rows", "key_path": "a.b"}, {"tokenizer_file": "words"}]
    assert [told(said) for said in (*named, {"credentials": [{"path": "pw"}]})] == [{SECRET}] * 4
    assert [told(said) for said in (*plain, {"store": {"path": "rows"}})] == [{None}] * 4


def test_no_field_of_a_config_is_left_out_of_its_data() -> None:
    left, models = [BaseModel], set[type[BaseModel]]()
    while left:
        left += (below := left.pop().__subclasses__())
        models |= {one for one in below if one.__module__.startswith("burnish.")}
    assert RunConfig in models
    assert not [(one, name) for one in models for name, field in one.model_fields.items() if field.exclude]


WATCHED = ("https://evil.example/v1", "evil.example:50051", "runs/r/deployment.toml", "deployment.toml")
REFUSED: list[tuple[str, str]] = [
    (REWARD.replace("HANDLER", "service:evil"), r"rewards\.0\.args\.handler names 'service:evil', code"),
    *((REWARD.replace("HANDLER", one), r"rewards\.0\.args\.handler names an address") for one in (*LAMBDA, "reward-f")),
    ('[rft.objective]\nloss = "service:f"\n', r"rft\.objective\.loss names 'service:f', code"),
    ('[sft]\nsteps = 1\ngenerate = "service:f"\n', r"sft\.generate names 'service:f', code"),
    ('[sft]\nsteps = 1\ndata = "s3://evil/rows.jsonl"\n', r"sft\.data names an address"),
    ('[sft]\nsteps = 1\ndata = "corpus"\n', r"sft\.data names a file outside of the run folder"),
    ('[engine]\nlog_file = "new.log"\n', r"engine\.log_file names a file outside of the run folder"),
    *(
        (f'[tasks]\ntrain = "{one}rows.jsonl"\nheld_out = "runs/r/sub/mine.jsonl"\n', r"tasks\.train names an address")
        for one in ("http://evil.example/", "s3://evil/", "hf://evil/", "file:///etc/")
    ),
    ('[tasks]\ntrain = "rows.jsonl"\nheld_out = "runs/r/rows.jsonl"\n', r"tasks\.train names a file outside of the run folder"),
    ('[retention]\nsuites = ["beside.toml"]\n', r"retention\.suites\.0 names a file outside of the run folder"),
    (
        '[[rewards]]\nverifier = "service:s"\n[services.s]\naddress = "evil.example:50051"\ntoken_env = "MY_SECRET"\ntls = {}\n',
        r"services\.s\.address names an address",
    ),
    ('[resources]\nray_address = "evil"\n', r"resources\.ray_address names an address"),
    *((f'[resources]\nwatch = ["{one}"]\n', r"resources\.watch\.0 names an address") for one in (*WATCHED, "127.0.0.1:50051")),
    *(
        (f'[resources]\nray_address = "auto"\nshared_folder = false\nsend = ["{one}"]\n', r"resources\.send\.0 names a file outside of the")
        for one in (".", "corpus", "runs")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("more", "said"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_recipe_of_a_run_folder_is_refused_for_what_it_names(run: Path, more: str, said: str) -> None:
    for place in (run / "recipe.toml", run / "sub" / "recipe.toml"):
        place.write_text(BASE + more)
        with pytest.raises(ValueError, match=said) as raised:
            load_recipe(place, (), (), False)
        assert len(str(raised.value).splitlines()) == 1 and "--trust" in str(raised.value)
        load_recipe(place, (), (), True)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (
            '[[rewards]]\nuse = "burnish/reward-lambda-v1"\nargs = { handler = "/evil/mod.py:handler" }\n',
            r"args\.handler names '/evil/mod.py",
        ),
        ('[[rewards]]\nuse = "burnish/reward-lambda-v1"\nargs = { handler = "reward-f" }\n', r"args\.handler names an address"),
        ('[[rewards]]\nname = "v"\nverifier = "evil.example:50051"\n', r"rewards\.0\.verifier names an address"),
        ('reward = "a/b-v1"\nenvironment_args = { describe = "service:f" }\n', r"environment_args\.describe names 'service:f', code"),
        ('reward = "a/b-v1"\nenvironment_args = { token_env = "X" }\n', r"token_env names a variable or file that holds a secret"),
        ('[[rewards]]\nuse = "burnish/guardrail-v1"\nargs = { policy = "runs/r/policy.toml" }\n', r"detectors\.0\.args\.base_url names"),
    ],
)
def test_a_suite_in_a_run_folder_is_that_folders_word_too(run: Path, suite: str, said: str) -> None:
    (run / "suite.toml").write_text(SUITE + suite)
    (run / "policy.toml").write_text(
        'name = "p"\nversion = 1\n[categories.c]\nkind = "own"\naction = "warn"\nmessage = "See https://h.example/help."\n'
        '[[detectors]]\nuse = "burnish/judge-v1"\nname = "j"\ncategory = "c"\n'
        'args = { model = "m", base_url = "https://evil.example/v1" }\n'
    )
    (run / "recipe.toml").write_text(BASE + '[retention]\nsuites = ["runs/r/suite.toml"]\n')
    with pytest.raises(ValueError, match=rf"retention\.suites\.0: runs/r/suite\.toml: .*{said}"):
        load_recipe(run / "recipe.toml", (), (), False)
    load_recipe(run / "recipe.toml", (), (), True)


def test_a_suite_leads_nowhere_by_a_link(run: Path) -> None:
    (run / "out").symlink_to(run.parent.parent / "corpus")
    (run / "suite.toml").write_text(SUITE.replace("rows.jsonl", "out") + 'reward = "a/b-v1"\n')
    (run / "recipe.toml").write_text(BASE + '[retention]\nsuites = ["runs/r/suite.toml"]\n')
    with pytest.raises(ValueError, match=r"rows names a file outside of the run folder"):
        load_recipe(run / "recipe.toml", (), (), False)


PARTS = """
success = "burnish-part"
[environment_args]
tools = "service:s"
[services.s]
tools = "burnish.envs.builtin.inspection.service"
[[rewards]]
name = "burnish-part"
use = "burnish/guardrail-v1"
args = { policy = "runs/r/policy.toml" }
[retention]
suites = ["burnish/plain-english-v1", "runs/r/suite.toml"]
[tasks]
train = "runs/r/rows.jsonl"
held_out = "runs/r/sub/mine.jsonl"
"""


def test_a_run_that_names_registered_parts_and_its_own_files_needs_no_trust(run: Path) -> None:
    (run / "suite.toml").write_text(SUITE + 'reward = "burnish/guardrail-v1"\n')
    (run / "policy.toml").write_text(
        'name = "p"\nversion = 1\n[messages]\nrefuse = "See https://h.example/help, or call h.example:1."\n[categories.c]\nkind = "own"\n'
        'action = "refuse"\n[[words]]\nname = "w"\ncategory = "c"\nwords = ["/etc/passwd", "mine.py"]\n'
    )
    (run / "recipe.toml").write_text(BASE.replace("Arithmetic", "QualityInspection") + PARTS)
    assert load_recipe(run / "recipe.toml", (), (), False).retention is not None


def test_what_is_given_with_the_command_is_the_users_own(run: Path) -> None:
    (run / "recipe.toml").write_text(BASE + REWARD.replace("HANDLER", "mine:f"))
    for given in ("rewards.0.args.handler=mine:f", "rewards.v.args.handler=mine:f", 'rewards=[{name="v",use="a/b-v1",args={x="mine:f"}}]'):
        load_recipe(run / "recipe.toml", (given,), (), False)
    for other in ("rft.steps=1", "environment_args.x=mine:f"):
        with pytest.raises(ValueError, match=r"rewards\.0\.args\.handler names"):
            load_recipe(run / "recipe.toml", (other,), (), False)


def test_a_recipe_beside_another_programs_config_is_no_runs(run: Path) -> None:
    project = run.parent.parent / "project"
    (project / "recipes").mkdir(parents=True)
    (project / "config.json").write_text('{"environment": "production"}')
    (project / "recipes" / "r.toml").write_text(BASE + REWARD.replace("HANDLER", "mine:f"))
    load_recipe(project / "recipes" / "r.toml", (), (), False)
    (project / "config.json").write_text(json.dumps({"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0"}))
    with pytest.raises(ValueError, match="--trust"):
        load_recipe(project / "recipes" / "r.toml", (), (), False)


@pytest.mark.parametrize("target", ["evilmod.:handler", "evil..mod:handler", "a.1b:f", "service.:f", ".:f"])
def test_a_handler_is_a_function_as_everywhere_else(target: str) -> None:
    with pytest.raises(ValueError, match="no handler"):
        HandlerSettings(target).kind  # noqa: B018
    with pytest.raises(ValueError, match="must read"):
        load_handler(target)
    with pytest.raises(ValueError, match="must read"):
        load_function(target, "x")


@pytest.mark.parametrize("port", ["00050051", "050051", "0", "65536", "\u0665"])
def test_a_port_has_one_form(port: str) -> None:
    with pytest.raises(ValueError, match="must read host:port"):
        Endpoint.parse(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("arguments", "said", "option"),
    [
        ({"tools": "127.0.0.1:0000041267"}, "names an address", "--outward"),
        ({"tools": LAMBDA[0]}, "names an address", "--outward"),
        ({"deep": ["outside.jsonl"]}, "names a file outside of the run folder", "--trust"),
        ({"service:f": 1}, "names 'service:f', code", "--trust"),
    ],
)
def test_a_replay_is_held_to_the_same(run: Path, arguments: dict[str, Any], said: str, option: str) -> None:
    config = {"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0", "environment_args": arguments}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) as raised:
        recorded_setup(run)
    assert option in str(raised.value)
    recorded_setup(run, outward=True, trust=True)
    with pytest.raises(ValueError, match=said):
        recorded_setup(run, outward=option == "--trust", trust=option == "--outward")


def test_what_reads_as_an_address_and_as_code_is_both(run: Path) -> None:
    pytest.importorskip("ray")
    config = {"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0", "environment_args": {"tools": "ray:verdicts"}}
    (run / "config.json").write_text(json.dumps(config))
    recorded_setup(run, outward=True)
    (run / "config.json").write_text(json.dumps({**config, "environment_args": {"describe": "ray:init"}}))
    with pytest.raises(ValueError, match="code"):
        recorded_setup(run, outward=True)


@pytest.mark.parametrize("text", ["You cross a frozen lake. " * 20, "Say left/right. " * 20, "a" * 300, "a/" * 3000, "a\0b", "left/right"])
def test_a_text_that_no_path_can_be_is_none(run: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions of more than 255 letters had `burnish replay` refuse its user's own runs."""
    config = {
        "name": "r",
        "model": "m",
        "environment": "burnish/Gymnasium-v0",
        "environment_args": {"env_id": "X-v1", "instructions": text},
    }
    (run / "config.json").write_text(json.dumps(config))
    for folder in (run.parent.parent, run):  # where a text counts from
        monkeypatch.chdir(folder)
        assert recorded_setup(run).environment.args["instructions"] == text
        recorded_setup(run, trust=True)
    if text.isprintable():
        (run / "recipe.toml").write_text(BASE + f"environment_args = {{ instructions = {json.dumps(text)} }}\n")
        load_recipe(run / "recipe.toml", (), (), False)


WORLDS = ("burnish.envs.builtin.nope.x", "burnish.envs.builtin.arithmetic.x", "burnish.envs.builtin.nope:f", "burnish.envs.builtin.a.b:f")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"environment_args": {"k": "PLACE/ring"}}, None),
        ({"environment_args": {"k": "PLACE/ring/x.py:f"}}, "names 'PLACE/ring/x.py:f', code"),
        ({"plugins": ["PLACE/ring.py"]}, "names 'PLACE/ring.py', code"),
        ({"environment_args": {"t": "service:s"}, "services": {"s": {"tools": "PLACE/ring.py"}}}, "names 'PLACE/ring.py', code"),
        ({"environment_args": {"t": "service:s"}, "services": {"s": {"address": "h:1", "tls": {"ca": "PLACE/ring"}}}}, "names an address"),
        ({"environment_args": {"tools": "service:f"}}, "'service:f', which no table describes"),
        ({"environment_args": {"k": [{"deep": "service:"}]}}, "'service:', which no table describes"),
        *(({"environment_args": {"k": text}}, "code" if ":" in text else None) for text in WORLDS),
        *(({"plugins": [text]}, "code") for text in WORLDS),
    ],
)
def test_what_a_run_folder_names_and_is_not_there_is_said_in_one_line(run: Path, parts: dict[str, Any], said: str | None) -> None:
    for name in ("ring", "ring.py"):
        (run / name).symlink_to(name)
    config = {"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0", **parts}
    (run / "config.json").write_text(json.dumps(config).replace("PLACE", "runs/r"))
    if said is None:
        recorded_setup(run)
        return
    with pytest.raises(ValueError, match=said.replace("PLACE", "runs/r")):
        recorded_setup(run)
