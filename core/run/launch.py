"""`burnish run`: check, show the plan, make or open the run folder, and hand over to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from burnish.recipe.config import RunConfig, load_config
from burnish.run.folder import RunFolder, create_run, open_run


def launch(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    run_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> RunFolder | None:
    """Run a recipe, or continue a run; returns its folder. Everything that can be checked is checked before a folder is made.

    Raises ValueError for whatever the user can put right. Ctrl-C passes through, with a note that says how to resume.
    """
    from rich.console import Console

    from burnish.recipe.plan import make_plan, print_plan
    from burnish.trainer.models.finding import find_model, is_source

    if resume:
        run_dir = _run_to_resume(recipe, run_dir)
    elif recipe.is_dir():
        raise ValueError(f"{recipe} is a folder; give a recipe (*.toml), or --resume to continue the run in it")
    config = load_config(recipe, overrides, plugins)
    if resume and run_dir is not None:
        open_run(run_dir, config)  # before the plan: a run that cannot resume says so at once
    console = Console()
    if not dry_run and is_source(config.model):
        console.print(f"looking for model {config.model} (imported on first use)", markup=False)
        find_model(config.model, may_import=True)
    with console.status("checking the recipe and every row of its data") as status:
        plan = make_plan(config, run_dir, status.update)
    print_plan(plan, console)
    if dry_run:
        return None
    run = open_run(run_dir, config) if resume and run_dir is not None else create_run(config, recipe, run_dir)
    _run_pipeline(config, run, resume)
    return run


def _run_to_resume(recipe: Path, run_dir: Path | None) -> Path:
    if run_dir is not None:
        return run_dir
    if recipe.is_dir():
        return recipe
    raise ValueError(f"--resume needs the run: `burnish run RUN_FOLDER --resume`, or `burnish run {recipe} --resume --run-dir RUN_FOLDER`")


def _run_pipeline(config: RunConfig, run: RunFolder, resume: bool) -> None:
    from burnish.run.pipeline import run as run_pipeline

    try:
        run_pipeline(config, run.path, resume=resume)
    except BaseException as error:
        error.add_note(f"the run is in {run.path}; continue it with `{run.resume_command}`")
        raise
