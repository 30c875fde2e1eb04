"""Reading a recipe: a TOML file, its overrides and the platform's tables become a checked `RunConfig`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from burnish.envs.pydantic_words import few_lines, inner_model, is_model, kinds_of
from burnish.envs.registry import did_you_mean
from burnish.envs.toml_text import as_json, parse_toml
from burnish.recipe import machine
from burnish.recipe.checks import cross_problems, file_problems, own_idle_bounds, secret_problems
from burnish.recipe.config import RunConfig
from burnish.recipe.overrides import Override, kind_of, parse_override, shown_override
from burnish.recipe.platforms import OVERLAID, PLATFORMS, Platform, laid_over, overlay_problems
from burnish.recipe.problems import RecipeSource, problem_lines
from burnish.recipe.unsent import unsent_files
from burnish.rollout.store.own_files import own_file, read_whole
from burnish.trainer.objectives.presets import CLIPS, plain_name
from burnish.trainer.phases.common import PHASE_OWNS
from burnish.trainer.phases.registry import KINDS
from burnish.trainer.phases.rft import RFTPhaseConfig

DEEPEST: Final = 60
"""How deep tables and lists of a recipe may be nested; the arguments of an environment are its deepest."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = (), platform: str | None = None
) -> RunConfig:
    """Read a recipe (`*.toml`), or the `config.json` of a run folder, and apply overrides such as `"rft.lr=1e-5"`.

    plugins: files to load beside those that the recipe names. platform: "auto", "cpu" or "gpu", instead of the recipe's own; "auto" is
    gpu where torch sees one on this machine. Overrides count after the platform's tables, those of `cpu.…` and `gpu.…` within them.

    Raises ValueError with one line per problem, each naming the file or override, the dotted field, and what is wrong with it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    parsed = [parse_override(text) for text in overrides]
    data = _read(file)
    named = data.get("plugins", [])
    if plugins and isinstance(named, list):  # anything else is for the config to refuse
        data["plugins"] = [*named, *(str(plugin) for plugin in plugins)]
    if platform is not None:
        data["platform"] = platform
    return config_from_data(data, str(path), parsed)


def config_from_data(data: dict[str, Any], source: str = "config", overrides: Sequence[Override] = ()) -> RunConfig:
    """A checked config from plain data, as TOML gives it: types are exact, nothing is coerced. Raises ValueError like `load_config`.

    The tables of the other platform are checked too, each for itself, so that a recipe for both is right for both.
    """
    early = [override for override in overrides if override.path[0] in ("platform", *PLATFORMS)]
    late = [override for override in overrides if override not in early]
    for override in overrides:
        if len(override.path) > DEEPEST:
            raise ValueError(f"--set {shown_override(override.text, 60)}: a key of {len(override.path)} parts, which no recipe has")
        check_depth(override.value, f"--set {shown_override(override.text, 60)}")
    check_depth(data, source)
    for override in early:
        override.apply(data, source)
    problems = [RecipeSource(source, early).name(line) for line in overlay_problems(data)]
    if problems:
        raise ValueError(few_lines(problems))
    asked = data.get("platform", "auto")
    platform = _platform(asked)
    here = laid_over(data, platform)
    written = copy.deepcopy(here)
    if asked not in ("auto", *PLATFORMS):
        here["platform"] = asked  # for the config to refuse
    for override in late:
        override.apply(here, source)
    secrets = dict.fromkeys([*secret_problems(data), *secret_problems(here)])
    if secrets:
        raise ValueError(few_lines(f"{source}: {line}" for line in secrets))
    origin = RecipeSource(source, overrides, data.get(platform, {}), platform, written)
    config, problems = _config(here, origin)
    for other in PLATFORMS:
        if other != platform and other in data:
            more = _other_platform(data, other, source, early, late)
            problems += [f"{line} (on platform {other})" if f" {other}." not in line else line for line in more if line not in problems]
    if config is not None and not problems:
        problems = [
            origin.name(line) for line in (*cross_problems(config), *file_problems(config), *unsent_files(config, config.resources))
        ]
    if problems or config is None:
        raise ValueError(few_lines(problems))
    return config


def config_data(config: RunConfig) -> dict[str, Any]:
    """The config with every default written out, as plain JSON data; `load_config` reads it back to an equal config.

    The shared optimizer's rate and schedule are left out: no recipe may set them, and every phase has its own.
    """
    return config.model_dump(mode="json", exclude={"learner": {"optimizer": set(PHASE_OWNS)}})


def config_from_record(record: dict[str, Any]) -> RunConfig:
    """The config that `config_data` made plain data of. Raises ValueError like `load_config`."""
    return config_from_data(without_defaults(record, RunConfig))


def config_as_recorded(folder: Path) -> RunConfig:
    """The config of a run that is only looked at: its data, its model and its GPUs need not be here.

    Raises ValueError when the folder holds none, or its `config.json` is no config of this burnish.
    """
    file = own_file(folder, "config.json")
    if file is None:
        raise ValueError(f"{folder} is not a run folder (it has no config.json); give a folder under runs/")
    config, problems = _config(_read(file), RecipeSource(str(file)))
    if config is None:
        raise ValueError(few_lines(problems))
    return config


def check_depth(data: Any, where: str) -> None:
    """Raise ValueError naming the place when tables and lists are nested deeper than `DEEPEST`: what follows walks them by recursion."""
    level: list[tuple[str, Any]] = [("", data)]
    for _ in range(DEEPEST):
        level = [(f"{path}.{key}", item) for path, value in level for key, item in _items(value)]
    deeper = next((path for path, value in level if isinstance(value, dict | list)), None)
    if deeper is not None:
        raise ValueError(f"{where}: {deeper[1:61]}…: nested more than {DEEPEST} deep, which no recipe is")


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else []


def _platform(asked: Any) -> Platform:
    for platform in PLATFORMS:
        if asked == platform:
            return platform
    return "gpu" if machine.this_machine().gpus else "cpu"


def _config(data: Mapping[str, Any], origin: RecipeSource) -> tuple[RunConfig | None, list[str]]:
    try:
        return RunConfig.model_validate_json(as_json(data), strict=True), []
    except ValidationError as error:
        return None, problem_lines(error, RunConfig, origin)


def _other_platform(data: Mapping[str, Any], platform: Platform, source: str, early: list[Override], late: list[Override]) -> list[str]:
    """What is wrong with the tables of the platform that was not chosen, each field for itself; overrides were meant for the other."""
    there = laid_over(data, platform)
    kept = [override for override in late if override.path[0] not in OVERLAID]
    for override in kept:
        override.apply(there, source)
    return _config(there, RecipeSource(source, [*early, *kept], data[platform], platform))[1]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        near = sorted(str(other) for other in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        by_stem = {Path(one).stem: one for one in near}
        close = did_you_mean(file.stem, [*by_stem])
        close = f"; did you mean {next(one for stem, one in by_stem.items() if repr(stem) in close)}?" if "did you mean" in close else ""
        others = f"; {file.parent} has {', '.join(near[:12])}{', …' if near[12:] else ''}" if near else ""
        raise ValueError(f"recipe {file} does not exist{close or others}")
    try:
        text = read_whole(file).decode("utf-8-sig")  # an editor on Windows begins a file with a byte-order mark
        data = json.loads(text) if file.suffix == ".json" else parse_toml(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # both parsers' own errors, numbers of thousands of digits, nesting
        form = "JSON" if file.suffix == ".json" else "TOML"
        twice = "Cannot declare" in str(error) or "immutable" in str(error)
        hint = "; a table that stands in { … } on one line takes no further keys: give it a [table] of its own" if twice else ""
        hint = "; the key stands there a second time: remove one of them" if "Cannot overwrite" in str(error) else hint
        raise ValueError(f"{file}: not valid {form}: {error}{hint}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file}: must hold a JSON object, not a {kind_of(data)}")
    if not data:
        raise ValueError(f"{file}: is empty; a recipe has a name, a model and an environment at the least (`burnish recipe` has every key)")
    check_depth(data, str(file))
    return without_defaults(_as_it_began(data, file), RunConfig) if file.suffix == ".json" else data


def _as_it_began(data: dict[str, Any], file: Path) -> dict[str, Any]:
    """The config of a run as this burnish says what the run does, though another one may have recorded it: without `engine.adapters`, a
    learner merges its adapters and sends the whole model; a bound that cannot act, of a critic's estimate or of a ratio, is none."""
    engine, learner = data.get("engine"), data.get("learner")
    if file.name != "config.json" or not isinstance(engine, dict) or not isinstance(learner, dict):
        return data
    if learner.get("lora") is not None and "adapters" not in engine:
        engine["adapters"] = "merged"
    phases = data.get("phases")
    tables = phases if isinstance(phases, list) and phases else [data[kind] for kind in KINDS if data.get(kind) is not None]
    for table in tables:
        _bounds_as_they_began(table)
    config, _ = _config(without_defaults(data, RunConfig), RecipeSource(str(file)))
    for recorded, table in zip(tables, config.tables if config is not None else (), strict=False):
        if isinstance(table, RFTPhaseConfig) and config is not None:
            for key in own_idle_bounds(table, config.engine, config.learner):
                recorded["objective"]["loss_args"].pop(key, None)
    return data


def _bounds_as_they_began(table: Any) -> None:
    """Without the bounds of a recorded table that its kind refuses, since they cannot act."""
    if not isinstance(table, dict) or table.get("kind") != "rft":
        return
    critic, objective = table.get("critic"), table.get("objective")
    if isinstance(critic, dict) and table.get("minibatches") == table.get("epochs") == 1:
        critic["clip"] = None
    if isinstance(objective, dict) and isinstance(objective.get("loss_args"), dict) and plain_name(str(objective.get("loss"))) in CLIPS:
        low = objective["loss_args"].get("clip_low")
        if isinstance(low, int | float) and low > 1:
            objective["loss_args"]["clip_low"] = 1.0


def without_defaults(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Config data without the values that are defaults anyway, so that "was this set?" has the answer the recipe gave.

    A table that names its algorithm keeps every value: one that equals a default may be what the recipe says against the algorithm's own.
    """
    if data.get("algorithm") is not None and "algorithm" in model.model_fields:
        return data
    kept: dict[str, Any] = {}
    plain = model.model_construct().model_dump(mode="json", warnings=False) if data else {}
    for key, value in data.items():
        field = model.model_fields.get(key)
        if field is not None and not field.is_required() and key in plain and plain[key] == value:
            continue
        inner = inner_model(field.annotation) if field else None
        if inner is not None and isinstance(value, dict):
            direct = is_model(field.annotation) if field else False
            kept[key] = without_defaults(value, inner) if direct else {name: _pruned(item, inner) for name, item in value.items()}
        elif inner is not None and isinstance(value, list):
            kinds = kinds_of(field.annotation) if field else {}
            kept[key] = [_pruned(item, inner, kinds) for item in value]
        else:
            kept[key] = value
    return kept


def _pruned(item: Any, model: type[BaseModel], kinds: Mapping[Any, type[BaseModel]] | None = None) -> Any:
    if not isinstance(item, dict):
        return item
    if not kinds:
        return without_defaults(item, model)
    return {**without_defaults(item, kinds.get(item.get("kind"), model)), "kind": item.get("kind")}
