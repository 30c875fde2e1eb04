"""`burnish run`: check, show the plan, make or open the run folder, and hand over to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.recipe.load import load_config
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.run.folder import RunFolder, create_run, open_run
from burnish.run.measured import tell_last
from burnish.run.resume import behind, changes, is_finished
from burnish.trainer.models.checkpoints import latest

if TYPE_CHECKING:
    from rich.console import Console

    from burnish.recipe.plan import Plan


def launch(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    platform: str | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> RunFolder | None:
    """Run a recipe, or continue a run; returns its folder. Everything that can be checked is checked before a folder is made.

    platform: "auto", "cpu" or "gpu", instead of the recipe's own. dry_run: only check, show the plan, for which a model's weights need not
    be there, and rehearse an episode (see `rehearse`). tell: of a dry run, is given the plan as `plan_row` has it, or that the run is
    finished, once all is well; whatever else is said goes to stderr then. Raises ValueError for whatever the user can put right. Ctrl-C
    passes through, with a note that says how to resume.
    """
    from rich.console import Console

    from burnish.recipe.pace import machine_flops
    from burnish.recipe.plan import make_plan, print_plan
    from burnish.recipe.plan_row import plan_row
    from burnish.run.display import new_console, say
    from burnish.session import try_parts
    from burnish.trainer.models.finding import find_model, is_source

    if resume:
        run_dir = _run_to_resume(recipe, run_dir)
    elif recipe.is_dir():
        raise ValueError(f"{recipe} is a folder; give a recipe (*.toml), or --resume to continue the run in it")
    config = load_config(recipe, overrides, plugins, platform)
    run, done = resolve(config, planning=dry_run), None
    if resume and run_dir is not None:
        changes(run_dir, run)  # before the plan: a run that cannot resume says so at once
        if is_finished(open_run(run_dir), run):
            if not dry_run:
                tell_last(open_run(run_dir))
            return _say_finished(open_run(run_dir), run, dry_run, tell)
        done = behind(run_dir, run)
    console = new_console() if tell is None else Console(stderr=True)
    if not dry_run and is_source(run.model):
        console.print(f"looking for model {run.model} (imported on first use)", markup=False)
        find_model(run.model, may_import=True)
        run = resolve(load_config(recipe, overrides, plugins, platform))  # what follows from the model follows now
    with console.status("checking the recipe and every row of its data") as status:
        plan = make_plan(run, run_dir, status.update, need_weights=not dry_run, measure=machine_flops, done=done)
    if tell is None:
        print_plan(plan, console)
    if dry_run:
        rehearsed = list[str]()
        with console.status("rehearsing an episode with the recipe's environment, rewards and services"):
            try_parts(run, partial(say, console) if tell is None else rehearsed.append)
        if tell is not None:
            tell(plan_row(plan, rehearsed))
        return None
    folder = open_run(run_dir) if resume and run_dir is not None else create_run(run, recipe, run_dir)
    _run_pipeline(run, folder, resume, console, plan)
    say_what_next(folder, console)
    return folder


def say_what_next(folder: RunFolder, console: Console) -> None:
    """What a run that has ended leaves: its report, its transcripts, the policy to serve, and a doubt where there is one."""
    from burnish.rollout.store.records import read_evaluations
    from burnish.run.display import constant_line, say

    records = read_evaluations(folder.evaluations_file) if folder.evaluations_file.is_file() else []
    doubt = constant_line(records[-1].result) if records else None
    if doubt is not None:
        say(console, doubt)
    say(console, f"report:       {folder.report}")
    say(console, f"transcripts:  burnish rollouts {folder.path} --order worst")
    say(console, f"serve it:     burnish serve {folder.path}")


def _say_finished(folder: RunFolder, run: ResolvedRun, dry_run: bool, tell: Callable[[dict[str, Any]], None] | None) -> RunFolder | None:
    """What to say of a run that has nothing left to do, its report written where a kill came before that; of a dry run nothing is."""
    from burnish.inspector.report import write_report
    from burnish.recipe.plan_row import finished_row
    from burnish.run.display import new_console, say

    last = run.phases[-1]
    more = f"{folder.resume_command} --set {last.name}.steps={2 * last.table.steps}"
    if tell is not None:
        tell(finished_row(run, folder.path, behind(folder.path, run), more))
        return None
    console = new_console()
    say(console, f"{folder.path} is finished: nothing is left to do. Where it can go on, more steps take it on: `{more}`")
    if dry_run:
        return None
    if not folder.report.is_file():
        write_report(folder.path)
    say_what_next(folder, console)
    return folder


def _run_to_resume(recipe: Path, run_dir: Path | None) -> Path:
    if run_dir is not None:
        return run_dir
    if recipe.is_dir():
        return recipe
    if not recipe.exists():
        raise ValueError(f"{recipe} is not there; --resume continues a run folder, such as those that `burnish runs list` shows")
    raise ValueError(f"--resume needs the run: `burnish run RUN_FOLDER --resume`, or `burnish run {recipe} --resume --run-dir RUN_FOLDER`")


def _run_pipeline(run: ResolvedRun, folder: RunFolder, resume: bool, console: Console, plan: Plan) -> None:
    from burnish.rollout.store.sole_driver import AlreadyDriven
    from burnish.run.pipeline import run as run_pipeline

    try:
        run_pipeline(run, folder.path, resume=resume, console=console, plan=plan)
    except AlreadyDriven:
        raise  # the run is another's, and goes on
    except BaseException as error:
        if isinstance(error, ValueError) and latest(folder.path) is None:  # what a recipe or its parts have wrong is no other on resume
            error.add_note(f"nothing was trained; put it right and start again. What there is of this start is in {folder.path}")
        else:
            error.add_note(f"the run is in {folder.path}; continue it with `{folder.resume_command}`")
        raise
