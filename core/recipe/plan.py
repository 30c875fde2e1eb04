"""What a run is about to do, before it does it: phases, sizes, memory and time, where things go, and whether every part is there.

Times are said twice. "At most" is a simple model with constants measured on two AVX2 cores in float32, an upper bound of the steps
themselves: every turn is counted at its full length, and most end sooner. "About" is what an earlier run of the same model in the same
environment took on this machine, where there is one, and else an estimate from a short measurement (`pace.py`). Where that comes to more,
on a machine that is slower or busy, it is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.recipe import machine
from burnish.recipe.checks import SINGLE_TURN, idle_presets
from burnish.recipe.components import check_components
from burnish.recipe.doubts import order_doubts
from burnish.recipe.learns import learns
from burnish.recipe.measured import Rates, earlier_rates
from burnish.recipe.pace import ENGINE_SHARE, EPISODE_SHARE, LEARNER_SHARE, Amount, Pace, estimated, on_two_cores
from burnish.recipe.phase_run import PhaseRun
from burnish.recipe.placement import machine_problems
from burnish.recipe.resolve import RUNS, ResolvedRun
from burnish.recipe.services import ServiceConfig
from burnish.recipe.sizes import ModelFacts, memory_mb, model_facts
from burnish.rollout.store.records import Mode
from burnish.trainer.data.config import Making
from burnish.trainer.data.examples import Say, check_prompts, load_renderer, silent
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.models.finding import find_model
from burnish.trainer.phases.common import PhaseWork, Playing
from burnish.trainer.phases.rft import RFTPhaseConfig

if TYPE_CHECKING:
    from rich.console import Console

BETWEEN = "held out"
"""What the measurements in the course of phases are called; no phase is called so."""
START_S = 45.0
"""Seconds to start Ray and load an engine."""


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase: what it does in words, its tokens sampled and trained, and its episodes; the seconds that it takes at most, and about.
    None where nothing measured applies. amount: what the seconds follow from. limit_s: after which it ends."""

    name: str
    work: str
    sampled_tokens: int
    trained_tokens: int
    seconds: float | None
    episodes: int = 0
    about_s: float | None = None
    amount: Amount = field(default_factory=Amount)
    limit_s: float = math.inf

    def at(self, pace: Pace) -> float:
        """Seconds at a pace."""
        return min(self.amount.seconds(pace), self.limit_s)


@dataclass(frozen=True, slots=True)
class Done:
    """What a run that resumes has behind it: the phase and step of its checkpoint, whether that phase has ended, and the modes that were
    evaluated after it."""

    phase: str
    step: int
    ended: bool = False
    measured: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What `burnish run --dry-run` shows. memory_mb: by role. warnings: what will work, but not well, or not from here. measured_in: the
    run whose rates give the times that it will take about. machine_flops: of a short measurement that gives those that no run gives. done:
    what a run that resumes has behind it; phases and times are those that are left."""

    run: ResolvedRun
    model: ModelFacts
    phases: tuple[PhasePlan, ...]
    memory_mb: Mapping[str, int]
    services: tuple[str, ...]
    run_folder: str
    warnings: tuple[str, ...] = ()
    measured_in: Path | None = None
    machine_flops: float | None = None
    done: Done | None = None

    @property
    def seconds(self) -> float | None:
        """Of the whole run at most, or None when a phase has no bound."""
        return _whole([phase.seconds for phase in self.phases])

    @property
    def about_s(self) -> float | None:
        """Of the whole run about, or None where that of a phase is not known."""
        return _whole([phase.about_s for phase in self.phases])


def make_plan(
    run: ResolvedRun,
    run_dir: Path | None = None,
    say: Say = silent,
    *,
    need_weights: bool = False,
    measure: Callable[[], float] | None = None,
    done: Done | None = None,
) -> Plan:
    """Check that every part of the recipe is there and estimate the run. Loads plug-ins, but no model, and starts nothing.

    need_weights: whether a model folder without its weights will not do; a plan is made from its `config.json`. measure: what this machine
    makes of matrix products (`pace.machine_flops`), asked where no earlier run says how long things take; None asks nothing. done: for a
    run that resumes, what not to count.
    Every row of every data file is rendered; `say` is told how far that is. Raises ValueError when the model, the environment, a reward,
    a generator, a data file or a row is missing or unfit, when the model cannot be spread over the GPUs of an engine, or its chat template
    is none that can be trained with.
    """
    check_components(run)
    model = model_facts(find_model(run.model, need_weights=need_weights))
    _check_heads(run, model)
    planned = [_phase(run, phase, model, say) for phase in run.phases]
    phases = _left(run, [plan for plan, _ in planned], done) + _between(run, done) + _evaluation(run, done) + _retention(run, done)
    if run.tasks.files is not None:
        with_tools = run.environment.id == SINGLE_TURN and run.rollout.describe_tools
        files, longest, args = run.tasks.files, run.engine.max_context, run.rollout.template_args
        check_prompts(files, read_task_files(files), model.folder, longest, args, with_tools, say)
    rates, flops = earlier_rates(run, RUNS), None
    if rates is not None:
        phases = [replace(phase, about_s=_about(phase, rates)) for phase in phases]
    here = run.platform == "cpu" and run.placement.ray_address is None  # the constants are those of a CPU, and it is this machine's
    if here and measure is not None and any(phase.about_s is None for phase in phases):
        flops = measure()
        pace = estimated(model.parameters, flops)
        phases = [replace(phase, about_s=phase.at(pace)) if phase.about_s is None else phase for phase in phases]
    return Plan(
        run=run,
        model=model,
        phases=tuple(_bounded(phase, run, model) for phase in phases),
        memory_mb=memory_mb(model, run),
        services=tuple(_service_line(name, service) for name, service in run.services.items()),
        run_folder=str(run_dir or RUNS / f"{run.name}-YYYYmmdd-HHMMSS"),
        warnings=(*_warnings(run, model), *order_doubts(run.phases, model.folder, [work.examples for _, work in planned])),
        measured_in=rates.run if rates is not None else None,
        machine_flops=flops,
        done=done,
    )


def _bounded(phase: PhasePlan, run: ResolvedRun, model: ModelFacts) -> PhasePlan:
    """With the seconds that it takes at most: on idle cores, or as this machine was measured where that is more. None but for CPUs."""
    if run.platform != "cpu":
        return phase
    return replace(phase, seconds=max(phase.at(on_two_cores(model.parameters)), phase.about_s or 0.0))


def _whole(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) + START_S if len(known) == len(seconds) else None


def _about(phase: PhasePlan, rates: Rates) -> float | None:
    """Seconds of a phase at the rates of an earlier run, None where that run has none."""
    found: float | None = None
    if phase.name in (BETWEEN, "evaluation"):
        found = phase.episodes / rates.episodes_per_second if rates.episodes_per_second else None
    elif phase.episodes:
        found = phase.episodes * rates.seconds_per_episode if rates.seconds_per_episode else None
    elif phase.name in rates.tokens_per_second:
        found = phase.trained_tokens / rates.tokens_per_second[phase.name]
    return None if found is None else min(found, phase.limit_s)


def _left(run: ResolvedRun, phases: list[PhasePlan], done: Done | None) -> list[PhasePlan]:
    """Of the phases in order, what is left of them."""
    if done is None:
        return phases
    at = [phase.name for phase in phases].index(done.phase)
    under_way, steps = phases[at], run.phases[at].table.steps
    if done.ended or done.step >= steps:
        return phases[at + 1 :]
    share = (steps - done.step) / steps
    tokens = {name: round(share * getattr(under_way, name)) for name in ("sampled_tokens", "trained_tokens", "episodes")}
    work = f"steps {done.step + 1} to {steps} of: {under_way.work}"
    return [replace(under_way, work=work, amount=under_way.amount.part(share), **tokens), *phases[at + 1 :]]


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
    yield from idle_presets(run.reinforced, run.engine, run.learner)
    yield from machine_problems(run.placement, machine.this_machine())  # of a plan alone: a run is refused for them
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


def _phase(run: ResolvedRun, phase: PhaseRun, model: ModelFacts, say: Say) -> tuple[PhasePlan, PhaseWork]:
    """A phase by what its kind says of its work: sampling, learning and syncing, one after the other."""
    files = run.tasks.files
    making = Making(model.folder, run.engine.max_context, run.rollout.template_args)
    playing = Playing(run.rollout.sampled_tokens, context_per_episode(run), run.rollout.max_turns, files.train if files else None)
    work = phase.kind.plan(phase.table, making, playing, say)
    amount = Amount(
        work.sampled_tokens,
        model.parameters * (work.flops * work.trained_tokens + 6 * work.replayed_tokens),
        work.syncs * model.parameters * run.placement.engines,
        played=work.episodes > 0,
    )
    limit = math.inf if phase.table.max_minutes is None else 60 * phase.table.max_minutes
    trained = work.trained_tokens + work.replayed_tokens
    text = work.work + _budget(phase)
    return PhasePlan(phase.name, text, work.sampled_tokens, trained, None, work.episodes, amount=amount, limit_s=limit), work


def _budget(phase: PhaseRun) -> str:
    table = phase.table
    minutes = f"{table.max_minutes:g} minutes" if table.max_minutes is not None else ""
    tokens = f"{table.max_tokens:,} tokens" if table.max_tokens is not None else ""
    spent = " or ".join(filter(None, (minutes, tokens)))
    return f", until {spent} at most" if spent else ""


def _evaluation(run: ResolvedRun, done: Done | None) -> list[PhasePlan]:
    table = run.evaluation
    modes = table.modes
    times: float = table.before + table.after * len(run.phases)
    if done is not None:
        left = len(run.phases) - [phase.name for phase in run.phases].index(done.phase)
        times = table.after * (left - len(done.measured) / len(modes)) if modes else 0
    if not times:
        return []
    return [_held_out("evaluation", run, times, table.tasks, modes)]


def _between(run: ResolvedRun, done: Done | None) -> list[PhasePlan]:
    """The measurements in the course of phases."""
    table = run.evaluation
    times = sum(measurements(run, done).values())
    return [_held_out(BETWEEN, run, times, table.tasks_between, (table.mode_between,))] if times else []


def measurements(run: ResolvedRun, done: Done | None = None) -> dict[str, int]:
    """How often each phase is measured in its course, of what is left: after every so many steps, and after its last."""
    every, names = run.evaluation.every, [phase.name for phase in run.phases]
    counts = dict.fromkeys(names, 0)
    for phase in run.phases:
        if every is not None and isinstance(phase.table, RFTPhaseConfig):
            counts[phase.name] = math.ceil(phase.table.steps / every)
    if done is not None and every is not None:
        at = names.index(done.phase)
        counts |= dict.fromkeys(names[:at], 0)
        counts[done.phase] = 0 if done.ended or done.step >= run.phases[at].table.steps else max(0, counts[done.phase] - done.step // every)
    return counts


def _held_out(name: str, run: ResolvedRun, times: float, tasks: int, modes: Sequence[Mode]) -> PhasePlan:
    files = run.tasks.files
    count = tasks if files is None else min(tasks, len(read_task_files(files).held_out))
    episodes = round(times * len(modes) * count)
    tokens = episodes * run.rollout.sampled_tokens
    work = f"{times:g} times {count} held-out tasks, {' and '.join(modes)}" + (f", from {files.held_out}" if files else "")
    return PhasePlan(name, work, tokens, 0, None, episodes, amount=Amount(tokens))


def _retention(run: ResolvedRun, done: Done | None) -> list[PhasePlan]:
    """What `[retention]` measures: every suite under the base, twice, and after every phase."""
    table = run.retention
    if table is None:
        return []
    names = [phase.name for phase in run.phases]
    times = 2 + len(names) if done is None else len(names) - names.index(done.phase)
    asked = {suite.id: (table.items or suite.items) * table.samples for suite in run.suites if suite.kind == "answers"}
    tokens = times * sum(asked[suite.id] * suite.max_turns * suite.max_tokens for suite in run.suites if suite.id in asked)
    limits = {phase.name: phase.held_to(table).limits for phase in run.phases}
    each = [table.limits] if set(limits.values()) == {table.limits} else [f"after {name} {said}" for name, said in limits.items()]
    work = f"{times} times {', '.join(suite.id for suite in run.suites)}: {'; '.join(each)}"
    return [PhasePlan("retention", work, tokens, 0, None, amount=Amount(tokens))]


def context_per_episode(run: ResolvedRun) -> int:
    """Sampled tokens and as many from prompt and environment, within the context."""
    return min(run.engine.max_context, 2 * run.rollout.sampled_tokens)


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
    where = f"{run.platform.upper()}, {run.placement.runners_line}, Ray {run.placement.ray_address or 'started here'}"
    for key, value in {
        "run": run.name,
        "model": f"{model.folder.name}, {model.parameters / 1e6:.1f} M parameters, {model.layers} layers, {model.folder}",
        "environment": f"{environment.id} {dict(environment.args) or ''}",
        "reward": ", ".join(rewards),
        "success": run.success,
        "services": "\n".join(plan.services) or "none",
        "runs on": "\n".join([where, *run.placement.lines()]),
        **({"learns": "\n".join(said)} if (said := learns(run, model)) else {}),
        "memory": _memory_line(plan),
        "goes to": plan.run_folder,
        **({"is left": f"after {plan.done.phase}-{plan.done.step}, the latest checkpoint: what follows"} if plan.done is not None else {}),
        **({"but": "\n".join(plan.warnings)} if plan.warnings else {}),
    }.items():
        facts.add_row(f"[bold]{key}[/bold]", _plain(value))
    phases = Table("phase", "work", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("sampled", "trained", "about", "at most"):
        phases.add_column(heading, justify="right")
    for phase in plan.phases:
        sampled, trained = _tokens(phase.sampled_tokens), _tokens(phase.trained_tokens)
        phases.add_row(phase.name, _plain(phase.work), sampled, trained, duration(phase.about_s, "–"), duration(phase.seconds))
    whole = (f"[bold]{duration(plan.about_s, '–')}[/bold]", f"[bold]{duration(plan.seconds)}[/bold]")
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
    about = []
    if plan.measured_in is not None:
        about.append(f"at the rates of {plan.measured_in}, the same model in the same environment")
    if plan.machine_flops is not None:
        first = f"a rough estimate, since no run of this model here is below {RUNS}/"
        rest = "what it has no rate for is a rough estimate" if about else first
        shares = f"{LEARNER_SHARE:.0%} of it in the learner, {ENGINE_SHARE:.0%} in the engine"
        shares += f", episodes of {EPISODE_SHARE:.0%} of their longest"
        about.append(
            f"{rest}: this machine, as busy as it is, made {plan.machine_flops / 1e9:.0f} GFLOP/s of matrix products just now; {shares}. "
            "The run says more after its first evaluation"
        )
    if not about:
        about.append(f"not known, no run of this model in this environment is below {RUNS}/; the run says it after its first evaluation")
    return f"about: {'; '.join(about)}. {bound[0].upper()}{bound[1:]}"


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


def duration(seconds: float | None, unknown: str = "not measured") -> str:
    if seconds is None:
        return unknown
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
