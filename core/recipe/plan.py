"""What a run is about to do, before it does it: phases, sizes, memory and time, where things go, and whether every part is there.

Times are said twice. "At most" is a simple model with constants measured on two AVX2 cores in float32, an upper bound of the steps
themselves: every turn is counted at its full length, and most end sooner. "About" is what an earlier run of the same model in the same
environment took on this machine, where there is one. Neither replaces a look at the first steps of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.recipe import machine
from burnish.recipe.checks import SINGLE_TURN
from burnish.recipe.components import check_components
from burnish.recipe.measured import Rates, earlier_rates
from burnish.recipe.resolve import RUNS, PhaseRun, ResolvedRun
from burnish.recipe.services import ServiceConfig
from burnish.recipe.sizes import ModelFacts, adapter_parameters, memory_mb, model_facts
from burnish.trainer.data.config import Making
from burnish.trainer.data.examples import Say, check_prompts, load_renderer, silent
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.learner.config import LoRAConfig
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.manifest import own_manifest
from burnish.trainer.phases.common import PhaseWork, Playing
from burnish.trainer.phases.transitions import doubts

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


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase: what it does in words, its tokens sampled and trained, and its episodes; the seconds that it takes at most, and about, by
    an earlier run. None where nothing measured applies."""

    name: str
    work: str
    sampled_tokens: int
    trained_tokens: int
    seconds: float | None
    episodes: int = 0
    about_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `burnish run --dry-run` shows. memory_mb: by role. warnings: what will work, but not well, or not from here. measured_in: the
    run whose rates give the times that it will take about."""

    run: ResolvedRun
    model: ModelFacts
    phases: tuple[PhasePlan, ...]
    memory_mb: Mapping[str, int]
    services: tuple[str, ...]
    run_folder: str
    warnings: tuple[str, ...] = ()
    measured_in: Path | None = None

    @property
    def seconds(self) -> float | None:
        """Of the whole run at most, or None when a phase has no bound."""
        return _whole([phase.seconds for phase in self.phases])

    @property
    def about_s(self) -> float | None:
        """Of the whole run about, or None when a phase was not measured before."""
        return _whole([phase.about_s for phase in self.phases])


def make_plan(run: ResolvedRun, run_dir: Path | None = None, say: Say = silent, *, need_weights: bool = False) -> Plan:
    """Check that every part of the recipe is there and estimate the run. Loads plug-ins, but no model, and starts nothing.

    need_weights: whether a model folder without its weights will not do; a plan is made from its `config.json`.
    Every row of every data file is rendered; `say` is told how far that is. Raises ValueError when the model, the environment, a reward,
    a generator, a data file or a row is missing or unfit, when the model cannot be spread over the GPUs of an engine, or its chat template
    is none that can be trained with.
    """
    check_components(run)
    model = model_facts(find_model(run.model, need_weights=need_weights))
    _check_heads(run, model)
    planned = [_phase(run, phase, model, say) for phase in run.phases]
    phases = [plan for plan, _ in planned] + _evaluation(run, model) + _retention(run, model)
    if run.tasks.files is not None:
        with_tools = run.environment.id == SINGLE_TURN and run.rollout.describe_tools
        files, longest, args = run.tasks.files, run.engine.max_context, run.rollout.template_args
        check_prompts(files, read_task_files(files), model.folder, longest, args, with_tools, say)
    if run.platform == "gpu":  # the constants are those of a CPU
        phases = [replace(phase, seconds=None) for phase in phases]
    rates = earlier_rates(run, RUNS)
    if rates is not None:
        phases = [replace(phase, about_s=_about(phase, rates)) for phase in phases]
    return Plan(
        run=run,
        model=model,
        phases=tuple(phases),
        memory_mb=memory_mb(model, run),
        services=tuple(_service_line(name, service) for name, service in run.services.items()),
        run_folder=str(run_dir or RUNS / f"{run.name}-YYYYmmdd-HHMMSS"),
        warnings=(*_warnings(run, model), *_doubts(run, model, [work for _, work in planned])),
        measured_in=rates.run if rates is not None else None,
    )


def _whole(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) + START_S if len(known) == len(seconds) else None


def _about(phase: PhasePlan, rates: Rates) -> float | None:
    """Seconds of a phase at the rates of an earlier run, None where that run has none."""
    if phase.name == "evaluation":
        return phase.episodes / rates.episodes_per_second if rates.episodes_per_second else None
    if phase.episodes:
        return phase.episodes * rates.seconds_per_episode if rates.seconds_per_episode else None
    return phase.trained_tokens / rates.tokens_per_second[phase.name] if phase.name in rates.tokens_per_second else None


def _check_heads(run: ResolvedRun, model: ModelFacts) -> None:
    """vLLM gives every GPU as many attention heads, and as many key-value heads, or copies of one where there are fewer of them."""
    gpus = run.engine.gpus
    if model.heads % gpus or (model.kv_heads % gpus and gpus % model.kv_heads):
        fitting = [n for n in range(1, model.heads + 1) if not (model.heads % n or (model.kv_heads % n and n % model.kv_heads))]
        raise ValueError(
            f"engine.tensor_parallel: {gpus} GPUs cannot share {model.heads} attention heads and {model.kv_heads} key-value heads of "
            f"{model.folder.name}; choose one of {', '.join(map(str, fitting))}"
        )


def _warnings(run: ResolvedRun, model: ModelFacts) -> Iterator[str]:
    if run.platform == "cpu" and not machine.this_machine().bfloat16:
        for field, dtype in (("engine.dtype", run.engine.resolved_dtype), ("learner.dtype", run.learner.dtype)):
            if dtype != "float32":
                yield f"{field}: {dtype} is many times slower than float32 on this CPU, which has neither AVX-512 nor instructions for it"
    if (model.folder / "tokenizer.json").is_file() and not load_renderer(model.folder, run.rollout.template_args).append_only:
        yield "the chat template rewrites earlier turns: a turn that does not extend the one before trains as a sequence of its own"
    yield from _tight(run, model)
    if not model.weights_here:
        yield f"{model.folder} has no weights: the sizes follow from its config.json, and a run needs them"


def _tight(run: ResolvedRun, model: ModelFacts) -> Iterator[str]:
    """What the GPUs of this machine are too small for, as far as the formula of the expected memory goes. A cluster's are not known."""
    here, placement = machine.this_machine(), run.placement
    if run.platform != "gpu" or placement.ray_address is not None or not here.gpu_mb:
        return
    cures = ("learner.lora, resources.learners or learner.activation_checkpointing", "engine.tensor_parallel, max_num_seqs or max_context")
    shares = (placement.learner_gpus, placement.engine_gpus)
    for (role, needs), share, cure in zip(memory_mb(model, run).items(), shares, cures, strict=True):
        has = round(min(share, 1.0) * here.gpu_mb)
        if needs > has:
            yield f"{role} is expected to need {needs / 1000:.1f} GB and has {has / 1000:.1f}: change {cure}, or take a smaller model"


def engine_tokens_per_second(parameters: int) -> float:
    """Sampling rate on two cores: the power law through `ENGINE_POINTS`."""
    (small, fast), (large, slow) = ENGINE_POINTS
    exponent = math.log(slow / fast) / math.log(large / small)
    return float(fast * (parameters / small) ** exponent)


def _phase(run: ResolvedRun, phase: PhaseRun, model: ModelFacts, say: Say) -> tuple[PhasePlan, PhaseWork]:
    """A phase by what its kind says of its work: sampling, learning and syncing, one after the other."""
    files = run.tasks.files
    making = Making(model.folder, run.engine.max_context, run.rollout.template_args)
    playing = Playing(_sampled_per_episode(run), _context_per_episode(run), run.rollout.max_turns, files.train if files else None)
    work = phase.kind.plan(phase.table, making, playing, say)
    seconds = work.sampled_tokens / engine_tokens_per_second(model.parameters)
    seconds += model.parameters * (work.flops * work.trained_tokens + 6 * work.replayed_tokens) / LEARNER_FLOPS
    seconds += work.syncs * model.parameters * SYNC_S_PER_PARAMETER * run.placement.engines
    limit = phase.table.max_minutes
    seconds = seconds if limit is None else min(seconds, 60 * limit)
    trained = work.trained_tokens + work.replayed_tokens
    return PhasePlan(phase.name, work.work + _budget(phase), work.sampled_tokens, trained, seconds, work.episodes), work


def _budget(phase: PhaseRun) -> str:
    table = phase.table
    minutes = f"{table.max_minutes:g} minutes" if table.max_minutes is not None else ""
    tokens = f"{table.max_tokens:,} tokens" if table.max_tokens is not None else ""
    spent = " or ".join(filter(None, (minutes, tokens)))
    return f", until {spent} at most" if spent else ""


def _doubts(run: ResolvedRun, model: ModelFacts, works: Sequence[PhaseWork]) -> Iterator[str]:
    """What is doubtful about the order of phases, on the model that each of them will find."""
    manifest = own_manifest(model.folder)
    stage = manifest.stage if manifest is not None else None
    for phase, work in zip(run.phases, works, strict=True):
        if stage is not None:
            for doubt in doubts(stage, phase.table.kind, work.examples):
                yield f"phase {phase.name} on a model of stage {stage}: {doubt}"
        stage = phase.kind.stage


def _evaluation(run: ResolvedRun, model: ModelFacts) -> list[PhasePlan]:
    table = run.evaluation
    times = table.before + table.after * len(run.phases)
    if not times:
        return []
    modes = table.modes
    files = run.tasks.files
    count = table.tasks if files is None else min(table.tasks, len(read_task_files(files).held_out))
    episodes = times * len(modes) * count
    tokens = episodes * _sampled_per_episode(run)
    work = f"{times} times {count} held-out tasks, {' and '.join(modes)}" + (
        f", from {run.tasks.files.held_out}" if run.tasks.files else ""
    )
    return [PhasePlan("evaluation", work, tokens, 0, tokens / engine_tokens_per_second(model.parameters), episodes)]


def _retention(run: ResolvedRun, model: ModelFacts) -> list[PhasePlan]:
    """What `[retention]` measures: every suite under the base, twice, and after every phase."""
    table = run.retention
    if table is None:
        return []
    times = 2 + len(run.phases)
    asked = {suite.id: (table.items or suite.items) * table.samples for suite in run.suites if suite.kind == "answers"}
    tokens = times * sum(asked[suite.id] * suite.max_turns * suite.max_tokens for suite in run.suites if suite.id in asked)
    gates = f"at least {table.min_retention:.0%} of each kept" if table.min_retention else "nothing asked of what is kept"
    lost = f", at most {table.max_lost:.0%} of the items lost" if table.max_lost < 1 else ""
    work = f"{times} times {', '.join(suite.id for suite in run.suites)}: {gates}{lost}"
    return [PhasePlan("retention", work, tokens, 0, tokens / engine_tokens_per_second(model.parameters))]


def _sampled_per_episode(run: ResolvedRun) -> int:
    return run.rollout.max_turns * run.rollout.max_tokens_per_turn


def _context_per_episode(run: ResolvedRun) -> int:
    """Sampled tokens and as many from prompt and environment, within the context."""
    return min(run.engine.max_context, 2 * _sampled_per_episode(run))


def _service_line(name: str, service: ServiceConfig) -> str:
    if service.address is not None:
        return f"{name}: uses the one running at {service.address}"
    by = f", run by {service.python}" if service.python is not None else ""
    return f"{name}: starts {service.kind} {service.target} as a process{by}"


def print_plan(plan: Plan, console: Console) -> None:
    """Show a plan on a terminal."""
    from rich import box
    from rich.table import Table

    run, model, environment = plan.run, plan.model, plan.run.environment
    facts = Table.grid(padding=(0, 2))
    rewards = [f"{entry.name} ({entry.use or entry.verifier}) {entry.term.description}" for entry in run.rewards]
    if environment.weight:
        rewards.insert(0, f"env x {environment.weight:g}")
    where = f"{run.platform.upper()}, {run.placement.engines} env runner(s), Ray {run.placement.ray_address or 'started here'}"
    for key, value in {
        "run": run.name,
        "model": f"{model.folder.name}, {model.parameters / 1e6:.1f} M parameters, {model.layers} layers, {model.folder}",
        "environment": f"{environment.id} {dict(environment.args) or ''}",
        "reward": ", ".join(rewards),
        "success": run.success,
        "services": "\n".join(plan.services) or "none",
        "runs on": "\n".join([where, *run.placement.lines()]),
        **({"learns": _adapters_line(run.learner.lora, model)} if run.learner.lora is not None else {}),
        "memory": _memory_line(plan),
        "goes to": plan.run_folder,
        **({"but": "\n".join(plan.warnings)} if plan.warnings else {}),
    }.items():
        facts.add_row(f"[bold]{key}[/bold]", _plain(value))
    phases = Table("phase", "work", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("sampled", "trained", "about", "at most"):
        phases.add_column(heading, justify="right")
    for phase in plan.phases:
        sampled, trained = _tokens(phase.sampled_tokens), _tokens(phase.trained_tokens)
        phases.add_row(phase.name, _plain(phase.work), sampled, trained, _duration(phase.about_s, "–"), _duration(phase.seconds))
    whole = (f"[bold]{_duration(plan.about_s, '–')}[/bold]", f"[bold]{_duration(plan.seconds)}[/bold]")
    phases.add_row("[bold]all[/bold]", "with start-up", "", "", *whole)
    console.print(facts)
    console.print(phases)
    console.print(_plain(_times_line(plan)), style="dim", soft_wrap=True)


def _times_line(plan: Plan) -> str:
    """Where the two times come from."""
    bound = "at most: every turn at its full length, on idle cores" if plan.seconds is not None else "at most: known for CPUs only"
    rounds = max((table.max_refills for table in plan.run.reinforced), default=0)
    if rounds and plan.seconds is not None:
        bound += f"; up to {rounds} further rounds of tasks in a step, in place of groups that are dropped (max_refills), come on top"
    if plan.measured_in is not None:
        return f"about: at the rates of {plan.measured_in}, the same model in the same environment; {bound}"
    return f"about: not known, no run of this model in this environment is below {RUNS}/; the bar of the first steps will say. {bound}"


def _adapters_line(lora: LoRAConfig, model: ModelFacts) -> str:
    count = adapter_parameters(model, lora)
    return (
        f"adapters of rank {lora.rank}, {count / 1e6:.1f} M parameters ({count / model.parameters:.1%} of the model's); "
        "engines and checkpoints get the model with the adapters merged into it"
    )


def _memory_line(plan: Plan) -> str:
    parts = ", ".join(f"{name} {mb / 1000:.1f}" for name, mb in plan.memory_mb.items())
    if plan.run.platform == "gpu":  # of different devices: a sum would say nothing
        return f"expected, in GB: {parts}"
    return f"about {sum(plan.memory_mb.values()) / 1000:.1f} GB: {parts}"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _tokens(count: int) -> str:
    if not count:
        return "–"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e3 else str(count)


def _duration(seconds: float | None, unknown: str = "not measured") -> str:
    if seconds is None:
        return unknown
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
