"""`ray.tune` over a recipe: every trial is a run of it in its own process, judged by the rows that it writes, and pruned by ASHA.

    tune(Path("recipe.toml"), read_space(["rft.lr={low=1e-6, high=1e-4, log=true}"]), Search(trials=8), console)

Ray Tune draws the values and decides which trials go on: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934). The Ray that
it runs on is a small one of its own; a trial's run starts its own, or joins the cluster that the recipe names.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import strftime
from typing import TYPE_CHECKING, Any, Literal

from burnish.cluster import uninterrupted
from burnish.recipe.load import load_config
from burnish.recipe.resolve import RUNS, ResolvedRun, resolve
from burnish.rpc.local_ray import start_local_ray
from burnish.run import trials
from burnish.run.display import say
from burnish.run.space import Range, Space, combinations, corners, overrides_of
from burnish.run.trials import TrialFailed
from burnish.trainer.phases.rft import RFTPhaseConfig

if TYPE_CHECKING:
    from rich.console import Console

BEAT_S = 5.0
"""Seconds after which a trial answers Ray Tune without news: it hears nothing while it is asked."""

State = Literal["waits", "runs", "finished", "pruned", "failed", "interrupted"]


@dataclass(frozen=True)
class Search:
    """How a space is searched. trials: of every combination of listed values, each with values of its own in the ranges. concurrent: at
    once. phase: whose steps count, the last one unless given. metric: what is compared, success for reinforcement and loss for other
    phases unless given; mode: whether more of it is better. prune: whether trials that fall behind are ended early. grace: the step before
    which none is, a quarter of the phase unless given. keep: a trial goes on that is among the best 1 / keep at its step; those looked at
    are grace, keep x grace, keep^2 x grace … seed: of the values that are drawn.
    """

    trials: int = 1
    concurrent: int = 1
    phase: str | None = None
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    prune: bool = True
    grace: int | None = None
    keep: int = 2
    seed: int = 0


@dataclass
class Tried:
    """A trial and what came of it. overrides: what it differs in. step, score: its last ones; the score is the mean of the last three
    values. why: it failed."""

    number: int
    overrides: tuple[str, ...]
    state: State = "waits"
    step: int = 0
    score: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search found: its trials, what they were compared by, and the best, which ran to its end if any did. None when none has a
    score. command: what runs the recipe so."""

    folder: Path
    trials: tuple[Tried, ...]
    metric: str
    mode: Literal["max", "min"]
    best: Tried | None
    command: str

    def to_row(self) -> dict[str, Any]:
        """As `tune.json` in the folder has it."""
        trials = [asdict(one) for one in self.trials]
        return {"schema": 1, "metric": self.metric, "mode": self.mode, "command": self.command, "trials": trials}


def tune(
    recipe: Path,
    space: Space,
    search: Search,
    console: Console,
    arguments: Sequence[str] = (),
    run_dir: Path | None = None,
) -> Tuned:
    """Search a space. arguments: of `burnish run`, for every trial. run_dir: where the trials' run folders go.

    Everything that can be checked is checked before a trial starts: every listed value and both ends of every range make a recipe. Raises
    ValueError for what the user can put right, KeyboardInterrupt after every trial under way has ended.
    """
    run = _checked(recipe, space, search, arguments)
    table = run.phase(search.phase or run.phases[-1].name).table
    metric = search.metric or ("success" if isinstance(table, RFTPhaseConfig) else "loss")
    mode = search.mode or ("min" if "loss" in metric else "max")
    folder = (run_dir or RUNS / f"{run.name}-tune-{strftime('%Y%m%d-%H%M%S')}").absolute()
    folder.mkdir(parents=True)
    env = {name: os.environ[name] for name in trials.OWN_ENV if name in os.environ}
    plan = trials.TrialPlan(str(recipe), tuple(arguments), str(folder), table.name, metric, os.getcwd(), trials.PROGRAM, env)
    count = search.trials * combinations(space)
    say(console, f"{count} trials of {run.name}, {search.concurrent} at a time, by {metric} of {table.name} ({mode}); they go to {folder}")
    book = _Book(console, metric)
    try:
        with _small_ray(search.concurrent):
            ended = _fit(plan, space, search, (metric, mode, table.steps), book)
    finally:
        with uninterrupted():
            left = trials.wait_until_ended(sorted(folder.glob("trial-*.log")), trials.END_S)
            if left:
                say(console, f"still under way: {', '.join(str(log) for log in left)}")
    for one in book.trials.values():
        one.state = "interrupted" if one.state in ("waits", "runs") else one.state
    tried = tuple(sorted(book.trials.values(), key=lambda one: one.number))
    best = best_of(tried, mode)
    sets = "" if best is None else "".join(f" --set '{override}'" for override in best.overrides)
    found = Tuned(folder, tried, metric, mode, best, " ".join(["burnish run", str(recipe), *arguments]) + sets)
    (folder / "tune.json").write_text(json.dumps(found.to_row(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if not ended:
        raise KeyboardInterrupt
    return found


def best_of(trials: Sequence[Tried], mode: Literal["max", "min"]) -> Tried | None:
    """The best of those that ran to their end; of all that have a score where none did."""
    scored = [one for one in trials if one.score is not None]
    whole = [one for one in scored if one.state == "finished"] or scored
    sign = 1 if mode == "max" else -1
    return max(whole, key=lambda one: sign * (one.score or 0.0), default=None)


def _checked(recipe: Path, space: Space, search: Search, arguments: Sequence[str]) -> ResolvedRun:
    """The recipe with the first values of the space. Raises ValueError when some value makes none, or the search does not fit it."""
    given = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--set"]
    plain = resolve(load_config(recipe, given)).record
    try:
        first, *_ = runs = [resolve(load_config(recipe, [*given, *overrides_of(values)])) for values in corners(space)]
    except ValueError as error:
        told = str(error)
        for key in space:
            told = told.replace(f"--set {key}=", f"--space {key}=")
        absent = [f"--space {key}: {recipe} has no [{key.partition('.')[0]}]" for key in space if plain.get(key.partition(".")[0]) is None]
        raise ValueError("\n".join([*absent, told])) from None
    names = [phase.name for phase in first.phases]
    if search.phase is not None and search.phase not in names:
        raise ValueError(f"--phase {search.phase}: {first.name} has {', '.join(names)}")
    steps = {run.phase(search.phase or names[-1]).table.steps for run in runs}
    if len(steps) > 1:
        raise ValueError(f"the space varies the steps of {search.phase or names[-1]}, by which trials are compared; vary something else")
    if search.grace is not None and search.grace >= max(steps):
        raise ValueError(f"--grace {search.grace}: the phase has {max(steps)} steps, so no trial would ever be pruned; lower it")
    if search.concurrent > 1 and first.platform == "gpu" and first.placement.ray_address is None:
        raise ValueError("--concurrent: runs of their own would share the GPUs of this machine; name a cluster in resources.ray_address")
    return first


@contextmanager
def _small_ray(places: int) -> Iterator[None]:
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it repeats with a traceback what `on_trial_error` says in a line
    start_local_ray(num_cpus=places, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        with uninterrupted():
            ray.shutdown()


def _fit(plan: trials.TrialPlan, space: Space, search: Search, compared: tuple[str, str, int], book: _Book) -> bool:
    """Let Ray Tune run the trials. Returns whether it came to its end, which Ctrl-C keeps it from."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial without news yet has no score
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    _, mode, steps = compared
    grace = search.grace or max(1, steps // 4)
    # The last step is no place to prune: a run at its end saves its checkpoint.
    asha = partial(ASHAScheduler, time_attr="step", grace_period=grace, reduction_factor=search.keep, stop_last_trials=False)
    tuner = ray_tune.Tuner(
        _trainable(plan),
        param_space={"values": {key: _domain(one) for key, one in space.items()}},
        tune_config=ray_tune.TuneConfig(
            metric="score",
            mode=mode,
            num_samples=search.trials,
            search_alg=variants(search),
            scheduler=asha(max_t=max(grace, steps - 1)) if search.prune and steps > 1 else FIFOScheduler(),
        ),
        run_config=ray_tune.RunConfig(
            name=".tune",
            storage_path=plan.folder,
            verbose=0,
            callbacks=[_callback(book)],
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
        ),
    )
    tuner.fit()
    return all(one.state in ("finished", "pruned", "failed") for one in book.trials.values())


def variants(search: Search) -> Any:
    """What draws the values of trials: of ranges, for every combination of listed values anew, which Ray Tune calls no constant grid."""
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(max_concurrent=search.concurrent, random_state=search.seed)


def _domain(one: Range | tuple[Any, ...]) -> Any:
    """A dimension as Ray Tune has it."""
    from ray import tune as ray_tune

    if not isinstance(one, Range):
        return ray_tune.grid_search(list(one))
    if one.whole:  # the end of Tune's whole numbers is left out
        return (ray_tune.lograndint if one.log else ray_tune.randint)(int(one.low), int(one.high) + 1)
    return (ray_tune.loguniform if one.log else ray_tune.uniform)(one.low, one.high)


def _trainable(plan: trials.TrialPlan) -> type[Any]:
    from ray import tune as ray_tune

    class RecipeTrial(ray_tune.Trainable):  # type: ignore[misc]  # Ray Tune is untyped
        """A `Trial` in Tune's frame: a step is one of the run's."""

        def setup(self, config: dict[str, Any]) -> None:
            self.last: dict[str, Any] = {"step": 0}
            self.trial = trials.Trial(plan, number_of(self.trial_id), overrides_of(config["values"]))

        def step(self) -> dict[str, Any]:
            seen = self.trial.next(BEAT_S)
            if seen is not None:
                self.last = {"step": seen.step, "score": seen.score, "ended": seen.ended, "done": seen.ended}
            return {**self.last, "news": seen is not None}

        def cleanup(self) -> None:
            self.trial.end()

    return RecipeTrial


def number_of(trial_id: str) -> int:
    """From 1, of an id of Tune's such as "4f2a1_00003"."""
    return int(trial_id.rpartition("_")[2]) + 1


class _Book:
    """What is known of the trials."""

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric, self.trials = console, metric, dict[str, Tried]()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
        """Ray Tune stores all that it was given, for a restore that is not used here; a terminal cannot be stored."""
        return dict, ()

    def of(self, id: str, values: Mapping[str, Any]) -> Tried:
        return self.trials.setdefault(id, Tried(number_of(id), tuple(overrides_of(values))))

    def seen(self, one: Tried, step: int, score: float) -> None:
        one.step, one.score = step, score
        say(self.console, f"trial {one.number}, step {step}: {self.metric} {score:.4g}")

    def ended(self, one: Tried, state: State, why: str = "") -> None:
        one.state, one.why = state, why
        score = "no score" if one.score is None else f"{self.metric} {one.score:.4g}"
        say(self.console, f"trial {one.number} {state} at step {one.step}, {score}" + (f": {why}" if why else ""))


def _callback(book: _Book) -> Any:
    from ray import tune as ray_tune

    class Following(ray_tune.Callback):  # type: ignore[misc]  # Ray Tune is untyped
        """Tells the book what Tune learns."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            one = book.of(trial.trial_id, trial.config["values"])
            one.state = "runs"
            say(book.console, f"trial {one.number} runs with {', '.join(one.overrides)}")

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            if result["news"] and not result["ended"]:
                book.seen(book.of(trial.trial_id, trial.config["values"]), result["step"], result["score"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            whole = bool(trial.last_result.get("ended"))
            book.ended(book.of(trial.trial_id, trial.config["values"]), "finished" if whole else "pruned")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            book.ended(book.of(trial.trial_id, trial.config["values"]), "failed", why_it_failed(trial.error_file))

    return Following()


def why_it_failed(file: str | None) -> str:
    """The last line of the file in which Ray keeps a trial's error, "" where there is none. `trial.get_error()` looks where the file is put
    later only."""
    lines = Path(file).read_text(errors="replace").strip().splitlines() if file is not None and Path(file).is_file() else []
    return lines[-1].removeprefix(f"{TrialFailed.__module__}.{TrialFailed.__name__}: ") if lines else ""
