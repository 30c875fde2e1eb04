"""What the parts of a recipe must agree on. Each check gives lines `field: what is wrong and what to do`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.envs.registry import did_you_mean
from burnish.envs.row_files import is_there
from burnish.recipe.config import RunConfig
from burnish.recipe.phase_run import phase_runs
from burnish.recipe.platforms import DEVICES
from burnish.rollout.engine.config import EngineConfig
from burnish.rpc.address import RAY, SERVICE, service_references
from burnish.rpc.urls import is_called_secret, is_like_secret, says_where, secrets_in
from burnish.trainer.data.config import SupervisedRows
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.phases.registry import KINDS
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.watch.guards import BOUNDS, RULES

REMOTE_ENVIRONMENT = "burnish/Remote-v0"
SINGLE_TURN = "burnish/SingleTurn-v0"


def cross_problems(config: RunConfig) -> list[str]:
    """Every impossible combination in a config whose fields are each well-formed."""
    checks = (
        _phases, _retention, _turns, _context, _time, _rewards, _success, _services, _sent_arguments, _seeds, _tasks, _learner,
        _adapters, _rollouts, _bounds, _guards, _episodes, _between, _devices,
    )  # fmt: skip
    return [line for check in checks for line in check(config)]


def file_problems(config: RunConfig) -> list[str]:
    """Files that the recipe names and that are not there."""
    here = f"; a path counts from the folder that burnish is started in, {Path.cwd()}"
    missing = [path for path in config.plugins if not os.path.isfile(path)]
    lines = [f"plugins: {path} is not a file{'' if Path(path).is_absolute() else here}" for path in missing]
    for table in config.tables:
        lines += [
            f"{table.name}.{key}: {place} is not there" for key, places in table.reads.items() for place in places if not is_there(place)
        ]
    if config.tasks is not None:
        files = {"train": config.tasks.train, "held_out": config.tasks.held_out}
        lines += [f"tasks.{key}: {path} is not there" for key, path in files.items() if not is_there(path)]
    for name, service in config.services.items():
        if service.python is not None and not os.path.isfile(service.python):
            lines.append(f"services.{name}.python: {service.python} is not a file")
    return lines + _watch_problems(config.resources.watch)


def _watch_problems(watch: Sequence[str]) -> list[str]:
    """What the dashboard of the run could not watch."""
    if not watch:
        return []
    from burnish.hosting.watched import watched_by_run

    lines = []
    for one in watch:
        if os.path.exists(one) and not os.path.isfile(one):  # a pipe is waited for without end
            lines.append(f"resources.watch: {one} is not a file")
            continue
        try:
            watched_by_run({}, [one])
        except (OSError, ValueError) as error:
            lines.append(str(error) if str(error).startswith("resources.watch") else f"resources.watch: {error}")
    return lines


def secret_problems(value: Any, field: str = "") -> Iterator[str]:
    """Secrets in the URLs of plain data: a recipe is stored with its run. The lines do not repeat them."""
    if isinstance(value, str):
        for secret in secrets_in(value):
            yield f"{field}: holds {secret} in a URL, and a recipe is stored with its run; give it by token_env, token_file or api_key_env"
    elif isinstance(value, dict):
        for key, item in value.items():
            if is_called_secret(str(key)) and (_is_number(str(key), item) or _says_anything(item)):
                at = f"{field}.{key}" if field else str(key)
                yield f"{at}: is called a secret, and a recipe is stored with its run; have it read from an environment variable or a file"
            yield from secret_problems(item, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from secret_problems(item, f"{field}.{i}")


def _is_number(key: str, value: Any) -> bool:
    """Whether a secret is written as a number, `password = 1234`; that of several, `api_keys = 3`, says how many."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not key.lower().endswith("s")


def _says_anything(value: Any, secret: bool = True) -> bool:
    """Whether plain data of a secret holds a text that may be it. Of a table that says where the secret is read, `{ env = "NAME" }`, only
    what is called like one may be. secret: whether the value itself is called one."""
    if isinstance(value, dict):
        secret = secret and not any(says_where(str(key)) for key in value)
        inner = {str(key): item for key, item in value.items() if not says_where(str(key))}
        return any(_says_anything(item, secret or is_like_secret(key)) for key, item in inner.items())
    if isinstance(value, list | tuple):
        return any(_says_anything(item, secret) for item in value)
    return secret and isinstance(value, str) and bool(value)


def _phases(config: RunConfig) -> Iterator[str]:
    plain = [kind for kind in KINDS if getattr(config, kind) is not None]
    if config.phases and plain:
        yield f"{plain[0]}: has no place beside [[phases]], which say what runs and in which order; make it one of them"
    counts = Counter(table.name for table in config.tables)
    for name in sorted(name for name, count in counts.items() if count > 1):
        yield f'phases: {counts[name]} of them are called {name!r}; give each another name = "…"'

    if any(table.blend != one.blend for one in _reinforced(config) for table in _reinforced(config)):
        yield "phases: those of kind rft blend other environments; the engines play those of the first, so give all the same blend"


def _retention(config: RunConfig) -> Iterator[str]:
    for table in config.tables if config.retention is None else ():
        for key in ("min_retention", "max_lost"):
            if getattr(table, key) is not None:
                yield f"{table.name}.{key}: has no effect without [retention], which names the suites; add it, or remove this"


def _reinforced(config: RunConfig) -> list[RFTPhaseConfig]:
    return [table for table in config.tables if isinstance(table, RFTPhaseConfig)]


def _supervised(config: RunConfig) -> list[SupervisedRows]:
    return [rows for table in config.tables if (rows := table.supervised_rows) is not None]


def _turns(config: RunConfig) -> Iterator[str]:
    own = config.environment_args.get("max_turns")
    turns = {"rollout.max_turns": config.rollout.max_turns}
    if isinstance(own, int) and not isinstance(own, bool):
        turns["environment_args.max_turns"] = own
    for field, value in turns.items():
        if not config.multi_turn_rollouts and value > 1:
            yield f"{field}: {value} turns need multi_turn_rollouts = true"
    if config.multi_turn_rollouts and config.rollout.max_turns == 1:
        yield "rollout.max_turns: 1 turn contradicts multi_turn_rollouts = true; raise it or remove one of them"


def _context(config: RunConfig) -> Iterator[str]:
    rollout, context = config.rollout, config.engine.max_context
    sampled = rollout.max_turns * rollout.max_tokens_per_turn
    if sampled >= context:
        yield (
            f"engine.max_context: {context} tokens cannot hold max_turns x max_tokens_per_turn = {rollout.max_turns} x "
            f"{rollout.max_tokens_per_turn} = {sampled} sampled tokens and a prompt; raise it or lower rollout.max_tokens_per_turn"
        )


def _time(config: RunConfig) -> Iterator[str]:
    stall, silent, episode = config.limits.stall_s, config.engine.request_timeout_s, config.rollout.episode_timeout_s
    if stall < episode + silent:
        yield (
            f"limits.stall_s: {stall:g} s in which no call ends would end the run, and one call of the engine may take "
            f"rollout.episode_timeout_s = {episode:g} s, and engine.request_timeout_s = {silent:g} s more where it hangs; "
            "raise it, or lower one of these"
        )


def _rewards(config: RunConfig) -> Iterator[str]:
    counts = Counter(entry.name for entry in config.scorers)
    for name in sorted(name for name, count in counts.items() if count > 1):
        yield f'rewards: {counts[name]} of them are called {name!r}; give each another name = "…"'
    if not config.environment_weight and not any(entry.weight for entry in config.scorers):
        yield "rewards: every weight is 0, so nothing would be trained; give one reward or environment_weight a weight"


def _success(config: RunConfig) -> Iterator[str]:
    names = ["env", *(entry.name for entry in config.scorers)]
    asked = config.success.partition(".")[0]
    if asked not in names:
        ids = {f"'{entry.name}'?": entry.use for entry in config.scorers if entry.use and "name" not in entry.model_fields_set}
        close = did_you_mean(asked, names)
        after = next((f"'{id}'?" for quoted, id in ids.items() if close.endswith(quoted)), "")  # it may be the id that is misspelt
        yield f"success: no reward gives a part {config.success!r}" + (f"{close[:-1]}, of {after}" if after else close)


def _services(config: RunConfig) -> Iterator[str]:
    known = list(config.services)
    given = [(f"{where}.{key}", value) for where, _, args in _environments(config) for key, value in args.items()]
    used = [(field, name) for field, value in given for name in service_references(value)]
    used += [(f"rewards.{entry.name}", name) for entry in config.scorers for name in service_references(entry.verifier)]
    meant = set()
    for field, name in used:
        if name not in known:
            hint = did_you_mean(name, known) if known else ""
            meant |= {one for one in known if f"did you mean {one!r}?" in hint}
            yield f"{field}: {SERVICE}{name} has no table [services.{name}]{hint}"
    for name in sorted(set(known) - {name for _, name in used} - meant):
        yield f"services.{name}: nothing uses it; write '{SERVICE}{name}' in environment_args or in a reward's verifier, or remove it"
    kinds = {name: service.kind for name, service in config.services.items() if service.kind is not None}
    for name, service in config.services.items():
        if (service.address or "").startswith(RAY) and config.resources.ray_address is None:
            yield f"services.{name}.address: {service.address} is looked up on a running cluster; say which in resources.ray_address"
    for entry in config.scorers:
        for name in service_references(entry.verifier):
            if kinds.get(name, "verifier") != "verifier":
                yield f"rewards.{entry.name}: {SERVICE}{name} serves {_a(kinds[name])}, not a verifier"
    yield from _served(config, kinds)


def _served(config: RunConfig, kinds: Mapping[str, str]) -> Iterator[str]:
    for where, environment, args in _environments(config):
        wanted = "environment" if environment == REMOTE_ENVIRONMENT else "tools"
        for key, value in args.items():
            for name in service_references(value):
                if kinds.get(name, wanted) != wanted:
                    hint = f'; write environment = "{REMOTE_ENVIRONMENT}" to play in it' if kinds[name] == "environment" else ""
                    yield f"{where}.{key}: {SERVICE}{name} serves {_a(kinds[name])}, not {_a(wanted)}{hint}"


def _environments(config: RunConfig) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The recipe's own environment and those that are blended with it: the field of what each is made with, its id, and that."""
    yield "environment_args", config.environment.rpartition(":")[2], config.environment_args
    for table in _reinforced(config):
        for i, one in enumerate(table.blend):
            yield f"{table.name}.blend.{i}.environment_args", one.environment, one.environment_args


def _sent_arguments(config: RunConfig) -> Iterator[str]:
    for where, environment, args in _environments(config):
        if environment == REMOTE_ENVIRONMENT and args.get("kwargs"):
            for name in service_references(args.get("address")):
                if name in config.services and config.services[name].kind == "environment":
                    yield f"{where}.kwargs: a service lets no client set what it is made with; write services.{name}.kwargs"


def _a(kind: str) -> str:
    return {"tools": "tools", "verifier": "a verifier", "environment": "an environment"}[kind]


def _seeds(config: RunConfig) -> Iterator[str]:
    train, held_out = config.train_seeds, config.evaluation.seeds
    if max(train[0], held_out[0]) < min(train[1], held_out[1]):
        yield (
            f"evaluation.seeds: [{held_out[0]}, {held_out[1]}] overlaps train_seeds [{train[0]}, {train[1]}]; "
            "held-out tasks must never be trained on"
        )
    size = train[1] - train[0]
    for wanted in _supervised(config):
        if wanted.rows.generate is not None and wanted.examples > size:
            yield f"{wanted.called}.count: {wanted.examples} examples but train_seeds holds only {size}; widen it or lower count"


def _tasks(config: RunConfig) -> Iterator[str]:
    if config.tasks is None:
        if config.environment == SINGLE_TURN:
            yield f"tasks: {SINGLE_TURN} asks what a file of tasks asks; add [tasks] with train and held_out, two files of rows"
        return
    if config.tasks.train == config.tasks.held_out:
        yield "tasks.held_out: is tasks.train; held-out tasks must never be trained on"
    if "seeds" in config.evaluation.model_fields_set:
        yield "evaluation.seeds: has no effect with [tasks], whose held_out is what is measured; remove one of them"
    generates = any(wanted.rows.generate is not None for wanted in _supervised(config))
    if "train_seeds" in config.model_fields_set and not generates:
        yield "train_seeds: has no effect with [tasks], whose train is what is trained on; remove one of them"


def _learner(config: RunConfig) -> Iterator[str]:
    phase = config.tables[-1].name
    optimizer = config.learner.optimizer
    for key in ("lr", "warmup_steps", "schedule", "total_steps", "min_lr_ratio"):
        if key in optimizer.model_fields_set:
            use = f"write {phase}.{key}" if key in ("lr", "warmup_steps", "schedule") else 'write schedule = "cosine" in a phase'
            yield f"learner.optimizer.{key}: has no effect, every phase has its own schedule; {use}"


def _guards(config: RunConfig) -> Iterator[str]:
    given = sorted(config.guards.model_fields_set)
    reinforced = _reinforced(config)
    if given and not reinforced:
        yield f"guards.{given[0]}: has no effect without [rft], whose steps the guards watch; remove it"
    elif reinforced and all(table.objective.kl_coef == 0 for table in reinforced):
        for key in ("kl", "kl_max"):
            if key in given and config.guards.kl != "off":
                yield f"guards.{key}: no KL to a reference is measured with rft.objective.kl_coef = 0; raise that, or remove this"
    for key, guard in BOUNDS.items():
        if reinforced and key in given and getattr(config.guards, guard) == "off":
            yield f'guards.{key}: has no effect with guards.{guard} = "off"; remove one of them'
    if reinforced and "roll_backs" in given and all(getattr(config.guards, guard) != "roll_back" for guard in RULES):
        yield 'guards.roll_backs: has no effect where no guard is "roll_back"; remove it, or write that for one'


def _episodes(config: RunConfig) -> Iterator[str]:
    given = sorted(config.episodes.model_fields_set)
    if given and not _reinforced(config):
        yield f"episodes.{given[0]}: has no effect without [rft], whose steps store episodes; evaluations are always kept; remove it"


def _between(config: RunConfig) -> Iterator[str]:
    """Measurements in the course of a phase."""
    every, reinforced = config.evaluation.every, _reinforced(config)
    if every is not None and not reinforced:
        yield "evaluation.every: has no effect without [rft], between whose steps it measures; sft has held_out; remove it"
    elif every is not None and (longest := max(table.steps for table in reinforced)) < every:
        yield f"evaluation.every: {every} is never reached in {longest} steps; lower it, to {longest} for what is measured after the last"
    for table in reinforced:
        if table.keep_best and every is None:
            yield f"{table.name}.keep_best: has no effect without evaluation.every, by which its steps are measured; add it, or remove this"
        elif table.keep_best and every is not None and table.steps <= every:
            how = f"evaluation.every = {every} of {table.steps} steps leaves only the last weights measured"
            yield f"{table.name}.keep_best: has no effect: {how}; lower that, or remove it"


def _adapters(config: RunConfig) -> Iterator[str]:
    shared, phases = config.learner.lora, phase_runs(config)
    for table in config.tables:
        if table.lora is False and shared is None:
            yield f"{table.name}.lora: false has no effect without [learner.lora], whose adapters it would leave out; remove it"
    if shared is not None and all(table.lora is not None for table in config.tables):
        yield "learner.lora: has no effect where every phase says in its own table what it trains; remove it"
    alone = phases[0].lora is not None and not any(phase.merges for phase in phases) and config.engine.adapters != "merged"
    for key in ("weight_deltas", "whole_weights_every"):
        if alone and getattr(config.engine, key) is not None and config.resources.ray_address is not None:
            yield f'engine.{key}: has no effect where only adapters are sent, of [learner.lora]; remove it, or write adapters = "merged"'
    if config.engine.adapters is not None and phases[0].lora is None:
        if any(phase.lora is not None for phase in phases):
            yield "engine.adapters: has no effect where the first phase trains all weights: engines get merged ones from then on; remove it"
        else:
            yield "engine.adapters: has no effect without [learner.lora], which trains some; remove it"


def _rollouts(config: RunConfig) -> Iterator[str]:
    in_flight = any(table.rollouts == "async" for table in _reinforced(config))
    if config.engine.on_new_weights is not None and not in_flight:
        yield 'engine.on_new_weights: no answer is under way when new weights come unless rft.rollouts = "async"; remove it, or write that'
    for key in ("weight_deltas", "whole_weights_every"):
        if getattr(config.engine, key) is not None and config.resources.ray_address is None:
            yield f"engine.{key}: has no effect on the one node that is started here; remove it, or name a cluster in resources.ray_address"


def _bounds(config: RunConfig) -> Iterator[str]:
    for table in _reinforced(config):
        for key, value in own_idle_bounds(table, config.engine, config.learner).items():
            yield (
                f"{table.name}.objective.loss_args.{key}: {value:g} has no effect with one update a step by engines that wait, in "
                "float32: the ratio that it bounds is 1 but for rounding; remove it, or raise minibatches or epochs"
            )


def own_idle_bounds(table: RFTPhaseConfig, engine: EngineConfig, learner: LearnerConfig) -> dict[str, float]:
    """Bounds that a recipe sets of its own, against its algorithm's, and that cannot act."""
    own, idle = table.own_bounds(), table.idle_bounds(_exact(engine, learner))
    taken_away = {key for key, value in idle.items() if key == "clip_low" and value >= 1}  # that is how the lower bound is
    return {key: value for key, value in idle.items() if own.get(key) != value and key not in taken_away}


def idle_presets(tables: Iterable[RFTPhaseConfig], engine: EngineConfig, learner: LearnerConfig) -> Iterator[str]:
    """Bounds that algorithms write out, by their names, and that cannot act; of its own, a recipe is refused for one."""
    for table in tables:
        bounds = " and ".join(f"{name} = {value:g}" for name, value in table.idle_bounds(_exact(engine, learner)).items())
        if bounds and table.algorithm is not None:
            yield f"{table.name}: {bounds} of {table.algorithm} cannot act: no ratio gets there (docs/algorithms.md, One step)"


def _exact(engine: EngineConfig, learner: LearnerConfig) -> bool:
    """Whether both compute in float32."""
    return engine.resolved_dtype == learner.dtype == "float32"


def _devices(config: RunConfig) -> Iterator[str]:
    """What a platform's devices rule out. What the machine has is another matter: see `placement.py`."""
    assert config.platform != "auto", "the platform is chosen where a config is read"
    device, resources, engine = DEVICES[config.platform], config.resources, config.engine
    for field, asked in (("engine.device", engine.device), ("learner.device", config.learner.device)):
        if asked not in ("auto", device):
            yield f"{field}: {asked} is not what platform {config.platform} computes on; remove it and choose the platform"
    if config.platform == "cpu":
        for key in ("learner_gpus", "engine_gpus"):
            if getattr(resources, key) is not None:
                yield f"resources.{key}: has no effect on platform cpu; write it in [gpu.resources]"
        return
    share = resources.engine_gpus
    if share is not None and engine.gpus > 1:
        yield f"resources.engine_gpus: has no effect with tensor_parallel = {engine.gpus}, which takes whole GPUs; remove one of them"
    if share is not None and engine.gpu_memory_fraction is not None and engine.gpu_memory_fraction > share:
        yield f"engine.gpu_memory_fraction: {engine.gpu_memory_fraction:g} is more than resources.engine_gpus = {share:g}; lower it"
