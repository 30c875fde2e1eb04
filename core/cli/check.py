"""What `burnish check` does: find out what it is given, and run the conformance suite for that."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from burnish.cli.arguments import parse_arguments
from burnish.envs.checks.conformance import Report
from burnish.envs.checks.environment import check_environment
from burnish.envs.checks.playing import CheckedEpisode, play
from burnish.envs.checks.tool_service import check_tool_service
from burnish.envs.checks.tools import check_tools
from burnish.envs.contract import ENVS, kwargs_of
from burnish.envs.named import import_module
from burnish.envs.registry import ID_PATTERN, Registry, did_you_mean, load_plugin, shortened
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tool_calls import Malformed, parse_tool_calls
from burnish.envs.tool_sessions import SessionTools
from burnish.envs.tools import Tool, ToolSet, tool_classes
from burnish.hosting.services import load_tools
from burnish.rewards.checks.played import episode_of
from burnish.rewards.checks.reward import check_reward
from burnish.rewards.checks.trial import read_episodes
from burnish.rewards.checks.verifier import check_verifier, check_verifier_service
from burnish.rewards.options import describe_options, takes_option
from burnish.rewards.plugin import REWARDS, find_plugin
from burnish.rewards.remote.service import VERIFIERS
from burnish.rewards.types import RewardInput
from burnish.rpc.address import Endpoint, shown_address
from burnish.rpc.errors import RpcError, RpcRefused
from burnish.rpc.probe import services_at
from burnish.rpc.security import ClientSecurity

ADDRESS = re.compile(r"^(ray:[\w.-]+|[^\s/?]+:\d{1,5})(\?\S*)?$")
MODULE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
REMOTE_ENV = "burnish/Remote-v0"
REGISTRIES: tuple[Registry[Any], ...] = (ENVS, REWARDS, VERIFIERS)


@dataclass(frozen=True, slots=True)
class Given:
    """What the user gives the suites. args: an environment's or a reward's arguments; for tools, `data` of a task. sample: a file of
    conversations that rewards and verifiers can judge. replies: texts that mean something to an environment, and calls that mean something
    to tools. security: how to talk to the service at an address. played: episodes in an environment that stands in the same file."""

    args: Mapping[str, Any]
    sample: Path | None = None
    replies: tuple[str, ...] = ()
    security: ClientSecurity = field(default_factory=ClientSecurity)
    played: tuple[CheckedEpisode, ...] = ()

    def episodes(self, grouped: bool = False) -> list[RewardInput]:
        """Those of the sample, or else those that were played. Raises ValueError naming the rows of the sample that are unfit."""
        if self.sample is None:
            return [episode_of(one, i) for i, one in enumerate(self.played)]
        rows = read_episodes(self.sample, grouped)
        bad = [f"{where}: {row}" for where, row in rows if isinstance(row, str)]
        if bad:
            raise ValueError("\n".join(bad))
        return [row for _, row in rows if isinstance(row, RewardInput)]


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of one subject. uses: the options that have an effect on them."""

    run: Callable[[], Report]
    uses: frozenset[str]


def reports(
    target: str,
    args: Sequence[str],
    plugins: Sequence[Path],
    sample: Path | None,
    replies: Sequence[str],
    security: ClientSecurity | None = None,
) -> list[Report]:
    """The reports on everything that `target` names: an id, a plug-in file, a module, or the address of a service.

    Raises ValueError that says what there is when nothing is found.
    """
    for plugin in plugins:
        load_plugin(plugin)
    given = Given(parse_arguments(args), sample, tuple(replies), security or ClientSecurity())
    found = suites(target, given)
    said = {"--arg": bool(given.args), "--sample": given.sample is not None, "--reply": bool(given.replies)}
    said["--token-env, --token-file or --tls-…"] = given.security != ClientSecurity()
    idle = [option for option, used in said.items() if used and not any(option in suite.uses for suite in found)]
    if idle:
        raise ValueError(f"{' and '.join(idle)} has no effect on the checks of {target}")
    return [suite.run() for suite in found]


def suites(target: str, given: Given) -> list[Checks]:
    """What there is to run for `target`. Raises ValueError when it names nothing that can be checked."""
    module, _, id = target.rpartition(":")
    if ID_PATTERN.match(id):  # also module:namespace/Name-v0
        if module:
            import_module(module, "check")
        return _by_id(id, given)
    if target.endswith(".py"):
        return _by_module(load_plugin(target), target, given)
    if id.isidentifier() and (module.endswith(".py") or MODULE.match(module)) and not ADDRESS.match(target):  # as services take it
        return _by_name(module, id, given)
    place = Path(target)
    if place.is_file() or (place.is_dir() and not (place / "__init__.py").is_file()):
        raise ValueError(f"{target} is {'no Python file' if place.is_file() else 'a folder'}; give a plug-in file (my_file.py) or a module")
    if ADDRESS.match(target):
        return [_by_address(target, given)]
    if MODULE.match(target):
        return _by_module(import_module(target, "check").__name__, target, given)
    raise ValueError(f"{target!r} is no id (namespace/name-v1), no plug-in (file.py), no module and no address (host:port)")


def _by_id(id: str, given: Given) -> list[Checks]:
    known = {row.id: None for registry in REGISTRIES for row in registry.list()}
    if id not in known:
        close = did_you_mean(id, list(known)) or "; one of your own: `burnish check my_file.py`, or --plugin my_file.py"
        raise ValueError(f"nothing is registered as {id!r}: no environment, reward or verifier{close}")
    return [_suite(registry, id, given) for registry in REGISTRIES if any(row.id == id for row in registry.list())]


def _by_name(place: str, name: str, given: Given) -> list[Checks]:
    """The one function or class of a module that a name means: an environment, reward or verifier, a tool, or a class of tools."""
    module = import_module(place, "check")
    rows = [(registry, row) for registry in REGISTRIES for row in registry.list() if row.source == f"{module.__name__}:{name}"]
    given = replace(given, played=_played(module.__name__, replace(given, args={})))
    if rows:
        return [_suite(registry, row.id, given) for registry, row in rows]
    found = getattr(module, name, None)
    tools = ToolSet([found]) if isinstance(found, Tool) and not found.is_method else load_tools(f"{place}:{name}")
    _taken_by_any(given.args, [], [tools], f"{place}:{name}")
    return [_tools(tools, f"{place}:{name}", given)]


def _by_module(module: str, target: str, given: Given) -> list[Checks]:
    """Everything that importing the module registered, and its tools, each with the arguments that it takes."""
    rows = [(registry, row.id) for registry in REGISTRIES for row in registry.list() if _is_of(module, row.source)]
    tools = [value for key, value in vars(sys.modules[module]).items() if isinstance(value, Tool) and not key.startswith("_")]
    sets: dict[str, ToolSet | SessionTools] = {target: ToolSet(tools)} if tools else {}
    sets |= {f"{target}:{kind.__name__}": SessionTools(kind) for kind in tool_classes(sys.modules[module])}
    if not rows and not sets:
        plain = "; an ordinary Gymnasium environment is checked as burnish/Gymnasium-v0 --arg env_id=my_module:my-team/Name-v0"
        raise ValueError(f"{target} registers no environment, reward or verifier, and has no tools{plain}")
    _taken_by_any(given.args, rows, sets, target)
    given = replace(given, played=_played(module, given))
    found = [_suite(registry, id, replace(given, args=_taken(registry, id, given.args))) for registry, id in rows]
    return found + [_tools(one, name, given) for name, one in sets.items()]


def _taken(registry: Registry[Any], id: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that an environment, reward or verifier takes, by their names. One that takes any does not take the tools' data."""
    if registry is ENVS:
        named, others = kwargs_of(ENVS.get(id))
        return {key: value for key, value in args.items() if key in named or (others and key != "data")}
    if registry is REWARDS:
        plugin = find_plugin(id)
        what = f"reward {id!r}"
        return {key: value for key, value in args.items() if takes_option(what, plugin.function, plugin.first_parameter, key)}
    return {}


def _taken_by_any(args: Mapping[str, Any], rows: Sequence[tuple[Registry[Any], str]], tools: Collection[object], target: str) -> None:
    """Raise ValueError naming an argument that nothing takes; tools take the data of a task."""
    taken = {key for registry, id in rows for key in _taken(registry, id, args)} | ({"data"} if tools else set())
    for key in args:
        if key not in taken:
            known = [name for registry, id in rows for name in _names(registry, id)] + (["data"] if tools else [])
            raise ValueError(f"--arg {key}: nothing in {target} takes it{did_you_mean(key, list(dict.fromkeys(known)))}")


def _names(registry: Registry[Any], id: str) -> list[str]:
    if registry is ENVS:
        return list(kwargs_of(ENVS.get(id))[0])
    if registry is REWARDS:
        plugin = find_plugin(id)
        return [row.name for row in describe_options(f"reward {id!r}", plugin.function, plugin.first_parameter)]
    return []


def _check_tools_there(address: str, data: Mapping[str, Any] | None, given: Given) -> Report:
    return check_tool_service(address, data, _calls(given, RemoteToolSet(address).schemas()))


def _data_of(args: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The task's data for tools, of `--arg data=…`. Raises ValueError when it is no table."""
    data = args.get("data")
    if data is None:
        return None
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"--arg data: has to be a table, data={{shelf={{bolts=3}}}}, and is {shortened(repr(data))}")
    return data


def _tools(tools: ToolSet | SessionTools, target: str, given: Given) -> Checks:
    """What to check of tools: with the data that is given, or else that of the environment played, and calls that its prompt shows."""
    data = _data_of(given.args) or next((one.tool_data for one in given.played), None)
    calls = _calls(given, tools.schemas()) or _calls_shown(given.played, tools.schemas())
    return Checks(partial(check_tools, tools, data, calls, name=f"tools of {target}"), frozenset({"--arg", "--reply"}))


def _played(module: str, given: Given) -> tuple[CheckedEpisode, ...]:
    """Episodes of the first environment that the module registers: what its rewards, verifiers and tools are made for, more likely than
    not. None where it cannot be played, which the checks of the environment itself say."""
    ids = [row.id for row in ENVS.list() if _is_of(module, row.source)]
    for id in ids[:1]:
        with suppress(Exception):
            return tuple(play(id, _taken(ENVS, id, given.args), given.replies))
    return ()


def _calls(given: Given, schemas: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The replies that are calls of these tools."""
    read = [parse_tool_calls(text, schemas) for text in given.replies]
    return [(call.name, call.arguments) for calls in read if not isinstance(calls, Malformed) for call in calls]


def _calls_shown(played: Sequence[CheckedEpisode], schemas: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls of these tools that an environment's own messages show, as a prompt does that says how to call them."""
    names = "|".join(re.escape(str(schema.get("function", schema)["name"])) for schema in schemas)
    texts = [message.text for episode in played for message in episode.messages if message.role != "assistant"]
    shown = dict.fromkeys(call for text in texts for call in re.findall(rf"\b(?:{names})\([^()\n]{{0,200}}\)", text))
    return _calls(Given({}, replies=tuple(shown)), schemas)


def _is_of(module: str, source: str) -> bool:
    """Whether a source, `module:name`, is in the module, or in one below it that is loaded."""
    place = source.partition(":")[0]
    return place == module or (place.startswith(f"{module}.") and place in sys.modules)


def _suite(registry: Registry[Any], id: str, given: Given) -> Checks:
    if registry is ENVS:
        return Checks(partial(check_environment, id, given.args, replies=given.replies), frozenset({"--arg", "--reply"}))
    if registry is REWARDS:
        check_it = lambda: check_reward(id, given.args, given.episodes(find_plugin(id).level == "group"))  # noqa: E731
        return Checks(check_it, frozenset({"--arg", "--sample"}))
    return Checks(lambda: check_verifier(VERIFIERS.get(id), given.episodes()), frozenset({"--sample"}))


def _by_address(target: str, given: Given) -> Checks:
    """Ask by reflection what listens there."""
    address, shown = _guarded(target, given.security), shown_address(target)
    try:
        names = services_at(address)
    except RpcRefused as error:
        hint = "--token-env NAME or --token-file FILE for a token, --tls-ca PEM for its certificate"
        raise ValueError(f"{shown}: {error.message} (`burnish check` takes {hint})") from error
    except RpcError as error:
        raise ValueError(f"{shown} does not say what it is: {error.message}") from error
    uses = frozenset({"--arg", "--token-env, --token-file or --tls-…"})
    named = str(given.args.get("verifier", ""))
    for name in names:
        match name:
            case "burnish.v1.VerifierService":
                _only(given.args, "verifier", f"the verifier at {shown}")
                return Checks(lambda: check_verifier_service(address, named, given.episodes()), uses | {"--sample"})
            case "burnish.v1.ToolService":
                _only(given.args, "data", f"the tools at {shown}")
                return Checks(partial(_check_tools_there, address, _data_of(given.args), given), uses | {"--reply"})
            case "burnish.v1.EnvironmentService" if any(row.id == REMOTE_ENV for row in ENVS.list()):
                check_it = partial(check_environment, REMOTE_ENV, {**given.args, "address": address}, replies=given.replies)
                return Checks(check_it, uses | {"--reply"})
    raise ValueError(f"{shown} serves {', '.join(names) or 'nothing'}; checked are verifier, tool and environment services of burnish.v1")


def _guarded(target: str, security: ClientSecurity) -> str:
    """The address with how to talk to it. Raises ValueError when both the target and the options say how, or the address is malformed."""
    endpoint = Endpoint.parse(target)
    if security == ClientSecurity():
        return target
    if endpoint.security != ClientSecurity():
        raise ValueError(f"{shown_address(target)}: say how to talk to it behind the ? or by options, not both")
    return str(Endpoint.parse(str(replace(endpoint, security=security.absolute()))))


def _only(args: Mapping[str, Any], known: str, what: str) -> None:
    for key in args:
        if key != known:
            raise ValueError(f"--arg {key}: the checks of {what} take only {known}; a token is given by --token-env or --token-file")
