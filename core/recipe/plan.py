"""What a run is about to do, before it does it: phases, sizes, memory and time, where things go, and whether every part is there.

The estimates are a simple model with constants measured on two AVX2 cores in float32. They are upper bounds of the steps themselves:
every turn is counted at its full length. They do not replace a look at the first steps of a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.recipe.checks import SINGLE_TURN
from burnish.recipe.components import check_components
from burnish.recipe.config import RunConfig
from burnish.rollout.engine.config import CPU_KV_CACHE_MB
from burnish.run.folder import RUNS
from burnish.trainer.data.examples import Say, check_prompts, silent, supervised_examples
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.folder import count_parameters
from burnish.trainer.phases.config import Phase, SupervisedConfig

if TYPE_CHECKING:
    from rich.console import Console

ENGINE_POINTS = ((4e6, 3500.0), (135e6, 100.0))
"""(parameters, sampled tokens per second) measured with vLLM on two cores; a power law joins them."""
LEARNER_FLOPS = 1e11
"""Floating-point operations per second of forward and backward passes on two cores."""
SYNC_S_PER_PARAMETER = 5e-9
"""Seconds per parameter to hand new weights to the engine."""
START_S = 45.0
"""Seconds to start Ray and load an engine."""
SAMPLE = 32
"""Examples that a generator makes to show how long they are; files are read and rendered whole."""
BYTES_PER_PARAMETER = {"learner": 16, "engine": 4}
"""Learner: float32 weights, gradient and two Adam moments. Engine: float32 weights."""
PROCESS_MB = {"learner": 700, "engine": 1500, "ray": 900}
"""Memory of the processes themselves, libraries included."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Dimensions of a model folder. embedding: parameters of the vocabulary matrix."""

    folder: Path
    parameters: int
    layers: int
    hidden: int
    vocabulary: int

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase: what it does in words, its tokens sampled and trained, and seconds; None where nothing measured applies."""

    name: str
    work: str
    sampled_tokens: int
    trained_tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `burnish run --dry-run` shows. memory_mb: by part."""

    config: RunConfig
    model: ModelFacts
    device: str
    phases: tuple[PhasePlan, ...]
    memory_mb: Mapping[str, int]
    services: tuple[str, ...]
    run_folder: str

    @property
    def seconds(self) -> float | None:
        """Of the whole run, or None when a phase has no estimate."""
        known = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(known) + START_S if len(known) == len(self.phases) else None


def make_plan(config: RunConfig, run_dir: Path | None = None, say: Say = silent) -> Plan:
    """Check that every part of the recipe is there and estimate the run. Loads plug-ins, but no model, and starts nothing.

    Every row of every data file is rendered; `say` is told how far that is. Raises ValueError when the model, the environment, a reward,
    a generator, a data file or a row is missing or unfit.
    """
    check_components(config)
    model = model_facts(find_model(config.model))
    on_gpu = config.engine.resolved_device == "cuda" or config.learner.device.startswith("cuda")
    phases = [_supervised(config, phase, model, say) if phase != "rft" else _rft(config, model) for phase in config.phases]
    phases += _evaluation(config, model)
    if config.tasks is not None:
        with_tools = config.environment == SINGLE_TURN and config.rollout.describe_tools
        check_prompts(
            config.tasks,
            read_task_files(config.tasks),
            model.folder,
            config.engine.max_context,
            config.rollout.template_args,
            with_tools,
            say,
        )
    if on_gpu:  # the constants are those of a CPU
        phases = [PhasePlan(p.name, p.work, p.sampled_tokens, p.trained_tokens, None) for p in phases]
    return Plan(
        config=config,
        model=model,
        device="GPU" if on_gpu else "CPU",
        phases=tuple(phases),
        memory_mb=_memory(config, model),
        services=tuple(_service_line(name, config) for name in config.services),
        run_folder=str(run_dir or RUNS / f"{config.name}-YYYYmmdd-HHMMSS"),
    )


def model_facts(folder: Path) -> ModelFacts:
    """Read a model's dimensions from its files."""
    shape = json.loads((folder / "config.json").read_text())
    return ModelFacts(folder, count_parameters(folder), shape["num_hidden_layers"], shape["hidden_size"], shape["vocab_size"])


def engine_tokens_per_second(parameters: int) -> float:
    """Sampling rate on two cores: the power law through `ENGINE_POINTS`."""
    (small, fast), (large, slow) = ENGINE_POINTS
    exponent = math.log(slow / fast) / math.log(large / small)
    return float(fast * (parameters / small) ** exponent)


def _supervised(config: RunConfig, phase: Phase, model: ModelFacts, say: Say) -> PhasePlan:
    table = config.phase(phase)
    assert isinstance(table, SupervisedConfig)
    args, longest = config.rollout.template_args, config.engine.max_context
    examples = supervised_examples(phase, table, 0, model.folder, longest, args, limit=SAMPLE, say=say)
    length = sum(len(example.token_ids) for example in examples) / len(examples)
    example = "documents" if phase == "cpt" else "conversations"
    tokens = round(table.steps * table.batch * length)
    work = (
        f"{table.steps} steps x {table.batch} {example} of about {length:.0f} tokens, lr {table.lr:g}, from {table.data or table.generate}"
    )
    return PhasePlan(phase, work, 0, tokens, 6 * model.parameters * tokens / LEARNER_FLOPS)


def _rft(config: RunConfig, model: ModelFacts) -> PhasePlan:
    table = config.rft
    assert table is not None
    episodes = table.steps * table.groups_per_step * table.group_size
    sampled, whole = episodes * _sampled_per_episode(config), episodes * _context_per_episode(config)
    size = f"{table.steps} steps x {table.groups_per_step} tasks x {table.group_size} episodes"
    turns = f"up to {config.rollout.max_turns} turns" if config.rollout.max_turns > 1 else "1 turn"
    work = f"{size} of {turns}, lr {table.lr:g}" + (f", from {config.tasks.train}" if config.tasks else "")
    learning = 8 * model.parameters * whole / LEARNER_FLOPS  # 6 to train, 2 for the log-probabilities that prove the sync
    syncing = table.steps * model.parameters * SYNC_S_PER_PARAMETER * config.resources.env_runners
    return PhasePlan("rft", work, sampled, whole, sampled / engine_tokens_per_second(model.parameters) + learning + syncing)


def _evaluation(config: RunConfig, model: ModelFacts) -> list[PhasePlan]:
    table = config.evaluation
    times = table.before + table.after * len(config.phases)
    if not times:
        return []
    modes = [mode for mode in ("sampled", "greedy") if getattr(table, mode)]
    count = table.tasks if config.tasks is None else min(table.tasks, len(read_task_files(config.tasks).held_out))
    tokens = times * len(modes) * count * _sampled_per_episode(config)
    work = f"{times} times {count} held-out tasks, {' and '.join(modes)}" + (f", from {config.tasks.held_out}" if config.tasks else "")
    return [PhasePlan("evaluation", work, tokens, 0, tokens / engine_tokens_per_second(model.parameters))]


def _sampled_per_episode(config: RunConfig) -> int:
    return config.rollout.max_turns * config.rollout.max_tokens_per_turn


def _context_per_episode(config: RunConfig) -> int:
    """Sampled tokens and as many from prompt and environment, within the context."""
    return min(config.engine.max_context, 2 * _sampled_per_episode(config))


def _memory(config: RunConfig, model: ModelFacts) -> dict[str, int]:
    learner = config.learner
    per_token = model.layers * model.hidden * (4 if learner.activation_checkpointing else 68)  # bytes of float32 activations
    activations = learner.microbatch_tokens * per_token + learner.logit_rows * model.vocabulary * 4 * 3
    engine = BYTES_PER_PARAMETER["engine"] * (model.parameters + 2 * model.embedding)  # tied matrices are packed once more
    runners, cache = config.resources.env_runners, config.engine.kv_cache_mb or CPU_KV_CACHE_MB
    return {
        "learner": round((BYTES_PER_PARAMETER["learner"] * model.parameters + activations) / 1e6) + PROCESS_MB["learner"],
        f"{runners} engine{'s' if runners > 1 else ''}": runners * (round(engine / 1e6) + cache + PROCESS_MB["engine"]),
        "Ray and its object store": PROCESS_MB["ray"] + config.resources.object_store_mb,
    }


def _service_line(name: str, config: RunConfig) -> str:
    service = config.services[name]
    if service.address is not None:
        return f"{name}: uses the one running at {service.address}"
    by = f", run by {service.python}" if service.python is not None else ""
    return f"{name}: starts {service.kind} {service.target} as a process{by}"


def print_plan(plan: Plan, console: Console) -> None:
    """Show a plan on a terminal."""
    from rich import box
    from rich.table import Table

    config, model = plan.config, plan.model
    facts = Table.grid(padding=(0, 2))
    rewards = [f"{entry.name} ({entry.use or entry.verifier}) {entry.term.description}" for entry in config.scorers]
    if config.environment_weight:
        rewards.insert(0, f"env x {config.environment_weight:g}")
    total = sum(plan.memory_mb.values())
    for key, value in {
        "run": config.name,
        "model": f"{model.folder.name}, {model.parameters / 1e6:.1f} M parameters, {model.layers} layers, {model.folder}",
        "environment": f"{config.environment} {config.environment_args or ''}",
        "reward": ", ".join(rewards),
        "success": config.success,
        "services": "\n".join(plan.services) or "none",
        "runs on": f"{plan.device}, {config.resources.env_runners} env runner(s), Ray {config.resources.ray_address or 'started here'}",
        "memory": f"about {total / 1000:.1f} GB: " + ", ".join(f"{name} {mb / 1000:.1f}" for name, mb in plan.memory_mb.items()),
        "goes to": plan.run_folder,
    }.items():
        facts.add_row(f"[bold]{key}[/bold]", _plain(value))
    phases = Table("phase", "work", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("sampled", "trained", "at most"):
        phases.add_column(heading, justify="right")
    for phase in plan.phases:
        sampled, trained = _tokens(phase.sampled_tokens), _tokens(phase.trained_tokens)
        phases.add_row(phase.name, _plain(phase.work), sampled, trained, _duration(phase.seconds))
    phases.add_row("[bold]all[/bold]", "with start-up", "", "", f"[bold]{_duration(plan.seconds)}[/bold]")
    console.print(facts)
    console.print(phases)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _tokens(count: int) -> str:
    if not count:
        return "–"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
