"""The `burnish` command. Each command imports what does its work when it runs, so that `burnish --help` stays fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.cli import branch as branch_command
from burnish.cli import (
    calibration_command,
    components_command,
    data_command,
    evaluate_command,
    feedback_command,
    guard_command,
    keys_command,
    models_command,
    runs_command,
    scaffold_command,
    ship_command,
)
from burnish.cli import debug as debug_command
from burnish.cli import deploy as deploy_commands
from burnish.cli import find_rate as find_rate_command
from burnish.cli import probe as probe_command
from burnish.cli import regrade as regrade_command
from burnish.cli import replay as replay_command
from burnish.cli import rollouts as rollouts_command
from burnish.cli import serve as serve_commands
from burnish.cli import tune as tune_command
from burnish.cli.group import Commands
from burnish.cli.needs import needs_engine, needs_training
from burnish.cli.options import (
    ArgOption,
    HostOption,
    InsecureOption,
    JsonOption,
    PluginOption,
    PortOption,
    TlsCertOption,
    TlsKeyOption,
    json_option,
    print_json,
)
from burnish.cli.signals import end_on_sigterm

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a model folder, or a name under models/.", show_default=False)
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe: rft.steps=50.")]
PlatformOption = Annotated[
    Literal["auto", "cpu", "gpu"] | None,
    typer.Option(help="Instead of the recipe's own platform; auto is gpu where torch sees one.", show_default=False),
]


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


if TYPE_CHECKING:
    from burnish.inspector.database import DatabaseLimits

app = typer.Typer(
    cls=Commands,
    help="Improve a language model at your task: environments, rewards, tools, training, evaluation, serving.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app, env_app, rewards_app, data_app, guard_app, keys_app, feedback_app, runs_app = (
    _group("Make, import, compare, merge and export models."),
    _group("List and check environments, and play their baselines."),
    _group("List, show, check and try rewards."),
    _group("Check, count, blend and trace data."),
    _group("Decide on texts and tool calls by a guardrail policy."),
    _group("Make, list and revoke the keys of a served model."),
    _group("Show, export and delete feedback on a served model's answers."),
    _group("List, show, compare and follow runs."),
)
models_command.register(models_app)
data_command.register(data_app)
guard_command.register(guard_app)
keys_command.register(keys_app)
feedback_command.register(feedback_app)
components_command.register(env_app, rewards_app)
app.add_typer(models_app, name="models")
app.add_typer(env_app, name="env")
app.add_typer(rewards_app, name="rewards")
app.add_typer(data_app, name="data")
app.add_typer(guard_app, name="guard")
app.add_typer(keys_app, name="keys")
app.add_typer(feedback_app, name="feedback")
app.add_typer(runs_app, name="runs")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"burnish {version('burnish')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (as BURNISH_DEBUG=1).")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    if debug:
        os.environ["BURNISH_DEBUG"] = "1"


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml), or with --resume a run folder.", show_default=False)],
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, rehearse an episode, and stop.")] = False,
    plugin: PluginOption = None,
    platform: PlatformOption = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run goes. Default: runs/NAME-DATE-TIME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir, or in the run folder given.")] = False,
    as_json: Annotated[bool, json_option("With --dry-run: print the plan as JSON; the rest goes to stderr.")] = False,
) -> None:
    """Train by a recipe: continued pre-training, supervised and reinforcement fine-tuning."""
    if as_json and not dry_run:
        raise ValueError("--json is of --dry-run; what a run does is read from its folder, as with `burnish runs tail RUN --follow --json`")
    if dry_run:
        needs_training("run --dry-run")
    else:
        needs_engine("run")
    from burnish.run.launch import launch

    tell, overrides, plugins = print_json if as_json else None, set_ or (), plugin or ()
    launch(recipe, overrides=overrides, plugins=plugins, platform=platform, run_dir=run_dir, resume=resume, dry_run=dry_run, tell=tell)


@app.command()
def recipe(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Only one table, such as rft or rewards.", show_default=False)
    ] = None,
) -> None:
    """Print every table and key that a recipe may have, as docs/recipe.md has them."""
    from burnish.recipe.reference import recipe_page

    typer.echo(recipe_page(table), nl=False)


@app.command()
def demo(
    model: Annotated[Literal["nano", "smollm2"], typer.Option(help="The model to start from.")] = "nano", platform: PlatformOption = None
) -> None:
    """The whole way in minutes: train, evaluate, export and serve a small model on quality inspection."""
    needs_engine("demo")
    from burnish.cli.demo import demo as run_demo

    run_demo(model, platform)


evaluate_command.register(app)
probe_command.register(app)
find_rate_command.register(app)
debug_command.register(app)
branch_command.register(app)
tune_command.register(app)


@app.command()
def serve(
    checkpoint: CheckpointArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    name: Annotated[str | None, typer.Option(help="The model name that clients ask for.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the engine runs; auto: what the installed vLLM was built for.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")] = 1,
    max_context: Annotated[int | None, typer.Option(min=1, help="Longest prompt and answer together, in tokens.")] = None,
    api_key_env: Annotated[str, typer.Option(metavar="NAME", help="Environment variable with the API key.", show_default=False)] = "",
    api_key_file: Annotated[
        str, typer.Option(metavar="FILE", help="File with the API keys that requests must carry, one a line.", show_default=False)
    ] = "",
    tls_cert: TlsCertOption = "",
    tls_key: TlsKeyOption = "",
    insecure: InsecureOption = False,
    keys: Annotated[
        str, typer.Option("--keys", metavar="FILE", help="Keys with scopes and limits, of `burnish keys`.", show_default=False)
    ] = "",
    policy: Annotated[
        str, typer.Option("--policy", metavar="FILE", help="A guardrail policy for requests and answers.", show_default=False)
    ] = "",
    plugin: PluginOption = None,
    max_judge_calls: Annotated[
        int, typer.Option(min=1, help="Calls of the policy's judges for one request; what they are not asked about counts as found.")
    ] = 256,
    audit_file: Annotated[
        str, typer.Option("--audit-file", metavar="FILE", help="Append a line for each request, without what was said.", show_default=False)
    ] = "",
    audit_prompts: Annotated[bool, typer.Option("--audit-prompts", help="With the messages of each request in it.")] = False,
) -> None:
    """Serve a checkpoint as an OpenAI-compatible chat endpoint."""
    needs_engine("serve")
    from burnish.inspector.text import printable
    from burnish.serving.config import ServingConfig, serving_options
    from burnish.serving.deploy import start_serving

    engine = {"device": device, "threads": threads, "max_context": max_context}
    guard = {"api_key_env": api_key_env, "api_key_file": api_key_file, "tls_cert": tls_cert, "tls_key": tls_key, "insecure": insecure}
    guard |= {"keys_file": keys, "policy": policy, "plugins": tuple(str(file.resolve()) for file in plugin or ())}
    guard |= {"max_judge_calls": max_judge_calls}
    guard |= {"audit_file": str(Path(audit_file).resolve()) if audit_file else "", "audit_prompts": audit_prompts}
    config = serving_options(ServingConfig(), host=host, **engine, **guard)
    with start_serving(checkpoint, port, name, config) as service:
        typer.echo(f"serving {printable(service.name)} at {service.url}/v1 (Ctrl-C stops it)")
        service.wait()


serve_commands.register(app)
deploy_commands.register(app)
ship_command.register(app)
scaffold_command.register(app)


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="An id, a plug-in file (.py), a module, or the host:port of a service.", show_default=False),
    ],
    arg: ArgOption = None,
    plugin: PluginOption = None,
    sample: Annotated[
        Path | None, typer.Option("--sample", metavar="FILE", help="Rows of conversations that a reward or verifier can judge.")
    ] = None,
    reply: Annotated[
        list[str] | None, typer.Option("--reply", metavar="TEXT", help="A reply that means something to an environment.")
    ] = None,
    token_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the token that a service wants.", show_default=False)
    ] = "",
    token_file: Annotated[str, typer.Option(metavar="FILE", help="File with the token that a service wants.", show_default=False)] = "",
    tls_ca: Annotated[
        str, typer.Option(metavar="PEM", help="The CA that signed a service's certificate; turns TLS on.", show_default=False)
    ] = "",
    tls_cert: Annotated[str, typer.Option(metavar="PEM", help="This client's own certificate (mutual TLS).", show_default=False)] = "",
    tls_key: Annotated[str, typer.Option(metavar="PEM", help="The key of that certificate.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """Does it keep its contract? An environment, a reward, a verifier, tools, or a service that runs."""
    from burnish.cli.check import reports
    from burnish.cli.components import print_reports
    from burnish.rpc.security import ClientSecurity

    security = ClientSecurity(tls_ca, tls_cert, tls_key, token_env=token_env, token_file=token_file)
    print_reports(reports(target, arg or (), plugin or (), sample, reply or (), security), as_json)


rollouts_command.register(app)
replay_command.register(app)
runs_command.register(app, runs_app)
calibration_command.register(runs_app)
regrade_command.register(app)

HEAD = "rollouts below /rollouts of the dashboard of: ray start --head --proxy-server-url={}"
"""What `inspect --behind-dashboard` says."""


@app.command()
def inspect(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A run folder, or a folder of them.")] = Path("runs"),
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one. Default: 8266.", show_default=False)] = None,
    memory_mb: Annotated[int, typer.Option(min=64, help="Memory of the database that answers lists and searches.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Threads of that database.")] = 2,
    spill: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for what does not fit into that memory. Default: the system's temporary one."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pages into this new folder, to send to somebody, instead of serving them.")
    ] = None,
    behind_dashboard: Annotated[
        bool,
        typer.Option("--behind-dashboard", help="Serve them to the dashboard of a Ray on this machine, behind its token."),
    ] = False,
    rollouts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rollouts that get a page in a bundle, the latest first; 20 times as many are listed. Default: 1000.",
            show_default=False,
        ),
    ] = None,
    deployment: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A deployment file, as of `burnish deploy`: the console shows how it is.")
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="http://host:port of a chat service, or host:port of a verifier, tools or an environment."),
    ] = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, json_option("With --bundle: print what was written as JSON.")] = False,
) -> None:
    """Look at rollouts in a browser, of runs that have ended or go on."""
    needs_training("inspect")
    from burnish.envs.registry import load_plugin
    from burnish.inspector.database import DatabaseLimits

    for file in plugin or ():
        load_plugin(file)

    if not runs.is_dir():
        raise ValueError(f"{runs} is no folder; `burnish run RECIPE` makes runs, in runs/ unless told otherwise")
    if bundle is not None:
        if deployment or service:
            raise ValueError("--deployment and --service have no effect on a bundle: files cannot ask how a service is; remove them")
        if port is not None or behind_dashboard:
            option = "--port" if port is not None else "--behind-dashboard"
            raise ValueError(f"{option} has no effect on a bundle, which is files that nothing serves; remove it")
        _write_bundle(runs, bundle, rollouts or 1000, DatabaseLimits(memory_mb, threads, spill), as_json)
        return
    if rollouts is not None or as_json:
        raise ValueError(f"{'--json' if as_json else '--rollouts'} is of a bundle; give --bundle DIR, too")
    from burnish.hosting.watched import watched_places
    from burnish.inspector.pages.serve import inspect_behind_dashboard, inspect_forever

    watched = watched_places(deployment or (), service or ()) if deployment or service else None
    serve, at = (inspect_behind_dashboard, HEAD) if behind_dashboard else (inspect_forever, "rollouts: {}")
    said = f"{at}\nCtrl-C ends this.".format
    serve(
        runs, 8266 if port is None else port, lambda address: typer.echo(said(address)), DatabaseLimits(memory_mb, threads, spill), watched
    )


def _write_bundle(runs: Path, bundle: Path, rollouts: int, limits: DatabaseLimits, as_json: bool) -> None:
    from burnish.inspector.database import Database
    from burnish.inspector.pages.bundle import write_bundle
    from burnish.inspector.text import printable

    made = write_bundle(runs, bundle, rollouts, Database(limits), lambda run: typer.echo(printable(run), err=as_json))
    if as_json:
        print_json({"file": str(bundle / "index.html"), "runs": made.runs, "pages": made.pages, "rollouts": made.rollouts})
    else:
        typer.echo(f"{bundle / 'index.html'}: {made.runs} run(s), {made.pages:,} of {made.rollouts:,} rollouts")


def main() -> None:
    """Entry point of the `burnish` command."""
    end_on_sigterm()
    app()


if __name__ == "__main__":
    main()
