"""The `burnish guard …` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from burnish.cli.answer import answer
from burnish.cli.needs import needs_engine
from burnish.cli.options import JsonOption, PluginOption, PortOption, StallOption, ThreadsOption, refuse_idle

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="A guardrail policy (*.toml).", show_default=False)]
WhereOption = Annotated[Literal["input", "output"], typer.Option(help="Whether the text is asked or answered.")]


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    app.command("check")(check)
    app.command("evaluate")(evaluate)
    app.command("serve")(serve)
    app.command("train")(train)


def check(
    policy: PolicyArgument,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A file with a text.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="The text itself.", show_default=False)] = None,
    call: Annotated[str | None, typer.Option(metavar="JSON", help="A tool call, with name and arguments.", show_default=False)] = None,
    where: WhereOption = "input",
    context: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What an answered text must follow from.", show_default=False)
    ] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide on a text or tool call by a policy; with neither, hold the policy to its own examples. Exits with 1 unless all is well."""
    from burnish.cli import guard as work
    from burnish.inspector.text import printable, printable_json

    _load(plugin)
    if sum(given is not None for given in (file, text, call)) > 1:
        raise ValueError("give one of FILE, --text and --call")
    if context is not None and ((file is None and text is None) or where != "output"):
        raise ValueError("--context has no effect but on a text with --where output")
    if call is not None:
        row = work.call_row(policy, call)
        said = printable(f"{row['action']} by {row['policy']}: {row['reason'] or row['tool']}").replace("\n", "\\n")
        answer(printable_json(row) if as_json else said)
        allowed = row["action"] == "allow"
    elif file is not None or text is not None:
        source = work.read_text(context) if context is not None else None
        decision, unheld = work.check_text(policy, work.read_text(file) if file is not None else text or "", where, source)
        if unheld:
            typer.echo(unheld, err=True)
        answer(printable_json(decision.to_row()) if as_json else "\n".join(work.decision_lines(decision)))
        allowed = decision.action == "allow"
    else:
        allowed = _check_policy(policy, as_json)
    if not allowed:
        raise typer.Exit(1)


def _load(plugins: list[Path] | None) -> None:
    from burnish.envs.registry import load_plugin

    for plugin in plugins or ():
        load_plugin(plugin)


def _check_policy(file: str, as_json: bool) -> bool:
    from burnish.cli import guard as work
    from burnish.guardrails.guard import Guard
    from burnish.guardrails.policy import load_policy
    from burnish.inspector.text import printable, printable_json

    policy = load_policy(file)
    broken = list(work.broken_promises(Guard(policy)))
    if as_json:
        answer(printable_json(work.policy_row(policy, broken)))
        return not broken
    said = [*work.policy_lines(policy), *(broken or ["it decides on its own examples as they say"])]
    typer.echo("\n".join(printable(line) for line in said))
    return not broken


def evaluate(
    policy: PolicyArgument,
    prompts: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help="Rows: prompt, attack, category, family, answer, tool_calls, context.", show_default=False),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Ask this model, instead of reading answers in the rows.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Ask this one too, and say what became of it.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the record and every sample into this new folder.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer. Default: 128.", show_default=False)] = None,
    threads: ThreadsOption = None,
    stall_s: StallOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a policy on attacks and benign prompts, and a model by its answers: those in the rows, or those that it gives here."""
    from burnish.rpc.extras import require

    require("burnish guard evaluate", ["scipy"], "train")
    _load(plugin)
    asking = {"base": base, "out": out, "max_tokens": max_tokens, "threads": threads, "stall_s": stall_s}
    if model is None:
        refuse_idle(asking, "without --model, which says who is asked")
        _evaluate_rows(policy, prompts, as_json)
        return
    needs_engine("guard evaluate --model")
    from burnish.cli.guard import record_lines
    from burnish.inspector.text import printable_json
    from burnish.run.display import new_console
    from burnish.run.guarded import MAX_TOKENS, Answering, evaluate_guarded

    how = Answering(max_tokens or MAX_TOKENS, out, plugin or (), threads or 1, stall_s)
    record = evaluate_guarded(policy, prompts, model, base, how, new_console(stderr=as_json))
    answer(printable_json(record.model_dump(mode="json")) if as_json else "\n".join(record_lines(record)))


def _evaluate_rows(file: str, prompts: str, as_json: bool) -> None:
    from burnish.cli.guard import evaluation_lines, evaluation_rows
    from burnish.guardrails.guard import Guard
    from burnish.guardrails.policy import load_policy
    from burnish.inspector.text import finite, printable_json
    from burnish.trainer.evaluation.guarded import measure, read_prompts

    guard = Guard(load_policy(file))
    rows_read = read_prompts(prompts)
    if guard.policy.grounding is not None and not any(row.context for row in rows_read):
        typer.echo("no row has a context, so [grounding] finds nothing here", err=True)
    measured = measure(guard, rows_read)
    rows = evaluation_rows(guard.policy, measured)
    answer(printable_json(finite(rows)) if as_json else "\n".join(evaluation_lines(guard.policy, measured)))


def serve(
    policy: PolicyArgument,
    port: PortOption = 0,
    api_key_env: Annotated[str, typer.Option(metavar="NAME", help="Environment variable with the key.", show_default=False)] = "",
    api_key_file: Annotated[str, typer.Option(metavar="FILE", help="File with the keys, one a line.", show_default=False)] = "",
    audit_file: Annotated[
        str, typer.Option("--audit-file", metavar="FILE", help="Append the decisions, without what was said.", show_default=False)
    ] = "",
    plugin: PluginOption = None,
) -> None:
    """Answer Bedrock's ApplyGuardrail by a policy, on loopback and without a model, until Ctrl-C."""
    from burnish.rpc.extras import require

    require("burnish guard serve", ["starlette", "uvicorn"], "train")
    from burnish.guardrails.guard import Guard
    from burnish.guardrails.policy import load_policy
    from burnish.serving.admission import RequestAdmission
    from burnish.serving.apply_guardrail import ApplyGuardrailApp, serve_forever
    from burnish.serving.audit import Audit, Books
    from burnish.serving.front import Front
    from burnish.serving.keys import listed_keys

    _load(plugin)
    guard = Guard(load_policy(policy))
    front = Front(RequestAdmission(listed_keys(api_key_env, api_key_file), hosts=()), Books(Audit(audit_file)))
    app = ApplyGuardrailApp(guard, front)
    serve_forever(app, port, lambda url: typer.echo(f"{guard.policy.id} at {url} (Ctrl-C stops it)"))


def train(
    rows: Annotated[list[str], typer.Argument(metavar="ROWS...", help="Rows with text, label, category, family.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the classifier goes; must not exist.", show_default=False)],
    policy: Annotated[
        str, typer.Option(metavar="POLICY", help="A policy, whose own examples are learnt from too.", show_default=False)
    ] = "",
    hold_out: Annotated[
        list[str] | None,
        typer.Option(metavar="FAMILY", help="A family to report on and not to learn from; repeatable.", show_default=False),
    ] = None,
    false_positives: Annotated[float, typer.Option(min=0.0001, max=0.5, help="The share of harmless texts that may be found.")] = 0.03,
    seed: Annotated[int, typer.Option(min=0, help="Draws the parts that are not learnt from.")] = 0,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier on labelled texts, as a detector for policies, and report on rows that it did not learn from."""
    from burnish.rpc.extras import require

    require("burnish guard train", ["scipy"], "train")
    from burnish.cli.guard import load_detectors
    from burnish.cli.guard_training import train_command

    load_detectors(plugin, policy)
    answer("\n".join(train_command(rows, out, policy, hold_out or [], false_positives, seed, as_json)))
