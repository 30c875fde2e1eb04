"""The `burnish probe` command, and its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.cli.answer import answer
from burnish.cli.needs import needs_engine
from burnish.cli.options import json_option

if TYPE_CHECKING:
    from burnish.run.probe import Probe
    from burnish.trainer.evaluation.outlook import Outlook, Share

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml).", show_default=False)]
EpisodesOption = Annotated[int, typer.Option(min=8, help="How many to sample, beside a quarter as many greedy ones.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe: rft.lr=1e-5.")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A Python file that registers environments or rewards.")
]
PlatformOption = Annotated[
    Literal["auto", "cpu", "gpu"] | None,
    typer.Option(help="Instead of the recipe's own platform; auto is gpu where torch sees one.", show_default=False),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where probe.json and the transcripts go. Default: runs/NAME-probe-DATE-TIME."),
]
JsonOption = Annotated[bool, json_option("Print JSON instead of the page; progress goes to stderr.")]

MARKS = {"stop": "✗", "mend": "!", "know": "·", "go": "✓"}
"""What a line of advice begins with."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("probe")(probe)


def probe(
    recipe: RecipeArgument,
    episodes: EpisodesOption = 256,
    set_: SetOption = None,
    plugin: PluginOption = None,
    platform: PlatformOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Before the money is spent: play a few hundred episodes of the start policy and say what training would find."""
    needs_engine("probe")

    from burnish.inspector.text import printable, printable_json
    from burnish.recipe.load import load_config
    from burnish.recipe.resolve import resolve
    from burnish.run.display import new_console
    from burnish.run.probe import probe as play
    from burnish.trainer.models.finding import find_model, is_source

    config = load_config(recipe, set_ or (), plugin or (), platform)
    if is_source(config.model):
        find_model(config.model, may_import=True)
    found, folder = play(resolve(config), run_dir, episodes, new_console(stderr=as_json))
    if as_json:
        answer(printable_json(found.to_row()))
        return
    typer.echo("\n".join(printable(line) for line in page(found)))
    typer.echo(f"\nall of it:    {folder.path / 'probe.json'}\ntranscripts:  burnish rollouts {folder.path}")


def page(found: Probe) -> Iterator[str]:
    """The probe on one page, a line at a time."""
    seen, again = found.seen, found.again
    yield f"{found.recipe}: what {seen.episodes} sampled episodes of the start policy {found.model} say ({found.seconds:.0f} s)"
    yield ""
    for name, text in _facts(found, seen):
        yield f"{name:<14}{text}"
    if again.examples:
        yield from (f"{'':<14}{example}" for example in again.examples)
    yield ""
    yield "what it means"
    yield from (f"  {MARKS[line.weight]} {line.text}" for line in found.lines)


def _facts(found: Probe, seen: Outlook) -> Iterator[tuple[str, str]]:
    yield "success", ", ".join(_successes(seen))
    yield "pass@k", "  ".join(f"{k}: {value:.1%}" for k, value in seen.pass_at.items())
    yield (
        "groups",
        f"{seen.teaching:.0%} of {seen.groups} can teach, {seen.teaching_success:.0%} differ in success; {seen.all_failed:.0%} fail and "
        f"{seen.all_succeeded:.0%} succeed throughout",
    )
    constant = [f"{name} is always {part.mean:g}" for name, part in seen.parts.items() if part.constant]
    varying = [f"{name} {part.low:g} to {part.high:g}, mean {part.mean:.3g}" for name, part in seen.parts.items() if not part.constant]
    yield "reward", "; ".join([*varying, *constant])
    yield "unreadable", ", ".join(f"{what} in {share:.1%}" for what, share in seen.unreadable.items()) or "nothing here counts it"
    yield "cut short", ", ".join(f"{share:.1%} by {limit}" for limit, share in seen.truncations.items()) or "none"
    if seen.failures:
        yield "failed", ", ".join(f"{count} {kind}" for kind, count in seen.failures.items())
    yield "asked twice", _asked_twice(found)
    yield (
        "latency",
        ", ".join(f"{name} {_seconds(one.median)} (95 % below {_seconds(one.p95)})" for name, one in seen.latencies.items()),
    )
    yield "a step", _step(found)
    yield "memory", "; ".join(_memory(found))
    yield "the recipe", "not known" if found.recipe_s is None else f"about {_duration(found.recipe_s)} to its end"


def _successes(seen: Outlook) -> Iterator[str]:
    def said(share: Share) -> str:
        return f"{share.value:.1%} [{share.low:.0%}, {share.high:.0%}] of {share.n} tasks"

    yield f"sampled {said(seen.sampled)}"
    if seen.greedy is not None:
        yield f"greedy {said(seen.greedy)}"
    if seen.best_constant is not None:
        yield f"best constant policy {seen.best_constant.success:.1%} ({seen.best_constant.label})"


def _asked_twice(found: Probe) -> str:
    again = found.again
    if not again.episodes:
        return "no group ended whole, so none was played again"
    failed = f", {again.failed} failed" if again.failed else ""
    return (
        f"of {again.episodes} episodes played again, {again.changed} verdicts changed, {again.other_answers} environments differed{failed}"
    )


def _step(found: Probe) -> str:
    cost = found.cost
    groups = f"{cost.sampled_groups:.0f} groups sampled, {cost.trained_groups:.1f} trained"
    if cost.seconds is None:
        return f"{_seconds(cost.sampling_s)} of sampling ({groups}); no group taught, so no update was measured"
    parts = f"{_seconds(cost.sampling_s)} sampling, {_seconds(cost.learning_s or 0)} learning, {_seconds(cost.sync_s or 0)} syncing"
    return f"about {_seconds(cost.seconds)}: {parts} ({groups})"


def _memory(found: Probe) -> Iterator[str]:
    yield "had " + ", ".join(f"{name} {mb / 1000:.1f} GB" for name, mb in found.peak_mb.items())
    yield "expected " + ", ".join(f"{name} {mb / 1000:.1f} GB" for name, mb in found.memory_mb.items())


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
