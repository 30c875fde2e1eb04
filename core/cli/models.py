"""What `burnish models …` does around `burnish.trainer.models`, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.cli.arguments import parse_arguments
from burnish.cli.found import Found
from burnish.envs.named import attributed, each_of, load_function
from burnish.envs.registry import did_you_mean
from burnish.inspector.text import printable
from burnish.trainer.data.sources import read_documents
from burnish.trainer.evaluation import suites
from burnish.trainer.models.finding import (
    DIGEST,
    default_model_name,
    delete_model,
    find_model,
    list_models,
    models_and_unread,
)
from burnish.trainer.models.folder import check_model_folder
from burnish.trainer.models.importing import import_model, new_model
from burnish.trainer.models.manifest import STAGES, DataUse, Manifest, own_manifest, read_manifest, verify_digests

SHOWN_TENSORS = 10
"""Of two models, the tensors that differ most."""
DEEPEST = 40
"""Ancestors below each other that are indented; what is further back stands below the last of them."""


PLAIN_TEXT = Path(suites.__file__).with_name("plain_english.txt")


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text for a new tokenizer: files, or a generator `module:function` with arguments `key=value` that makes `count` texts; with neither,
    a page of plain English that comes with burnish, enough for a model that only tries a recipe out."""

    files: tuple[Path, ...] = ()
    generate: str | None = None
    args: tuple[str, ...] = ()
    count: int = 2000

    def texts(self, seed: int) -> Iterator[str]:
        """Raises ValueError at once when both sources are given, and while iterating when one holds nothing readable."""
        if self.files and self.generate is not None:
            raise ValueError("a tokenizer is made of one kind of text: give either --text FILE or --generate module:function")
        if self.generate is None:
            if self.args:
                raise ValueError("--arg has no effect without --generate")
            return (text for file in self.files or (PLAIN_TEXT,) for text in read_documents(file))
        return self._generated(load_function(self.generate, "--generate"), seed)

    def _generated(self, function: Callable[..., Iterable[object]], seed: int) -> Iterator[str]:
        args, where = parse_arguments(self.args), f"--generate {self.generate}"
        with attributed(where):
            made = function(seed, self.count, **args)
        for text in each_of(made, where):
            if not isinstance(text, str):
                raise ValueError(f"{where} must give strings, not {type(text).__name__}")
            yield text


def new_named(name: str, source: TextSource, size: str, seed: int, models_dir: Path) -> Found:
    """Make `models_dir/name` and say what it is."""
    return _made(new_model(source.texts(seed), models_dir / _checked(name), size, seed), models_dir)


def import_named(
    source: str, name: str | None, stage: str | None, chat_template: Path | None, licence: str | None, models_dir: Path
) -> Found:
    """Import `source` as `models_dir/name` and say what it is."""
    known = [known for known in STAGES if known == stage]
    if stage is not None and not known:
        raise ValueError(f"--stage {stage!r} is unknown{did_you_mean(stage, list(STAGES))}")
    out = models_dir / _checked(name or default_model_name(source))
    manifest = import_model(source, out, stage=known[0] if known else None, chat_template=chat_template, licence=licence)
    return _made(manifest, models_dir, same_as=_same(manifest, models_dir))


def export_named(model: str, out: Path, format: str, models_dir: Path) -> Found:
    """Export a model and say what was written."""
    from burnish.trainer.models.bedrock import export_bedrock
    from burnish.trainer.models.exporting import export_folder, export_gguf

    write = {"folder": export_folder, "gguf": export_gguf, "bedrock": export_bedrock}[format]
    manifest = write(model, out, models_dir)
    said = f"exported {manifest.name} ({manifest.stage}, {manifest.parameters / 1e6:.1f} M parameters) to {out}"
    return Found([printable(said)], {**_row(out, manifest), "format": format})


def compare_named(model: str, other: str, models_dir: Path) -> Found:
    """What differs between two models, and the tensors that differ most."""
    from burnish.trainer.models.comparing import compare_models

    found = compare_models(model, other, models_dir)
    moved = sorted((change for change in found.tensors if change.relative), key=lambda change: -change.relative)
    facts = list(found.facts)
    lines = table_lines(("what", found.first.name, found.second.name), facts) if facts else ["manifests say the same"]
    lines += ["", f"weights: {len(moved)} of {len(found.tensors)} tensors differ, by {found.relative:.3g} of their norm together"]
    for one, names in ((found.first, found.only_first), (found.second, found.only_second)):
        lines += [f"only in {one.name}: {name}" for name in names]
    if moved:
        most = [(change.name, f"{change.relative:.3g}") for change in moved[:SHOWN_TENSORS]]
        lines += table_lines(("tensor", "relative difference"), most)
    data = {
        "models": [one.name for one in (found.first, found.second)],
        "facts": {what: values for what, *values in facts},
        "relative": found.relative,
        "tensors": {change.name: change.relative for change in found.tensors},
        "only_first": found.only_first,
        "only_second": found.only_second,
    }
    return Found([printable(line) for line in lines], data)


def merge_named(model: str, other: str, name: str, method: str, weight: float, base: str | None, models_dir: Path) -> Found:
    """Merge two models as `models_dir/name` and say what it is."""
    from burnish.trainer.models.merging import merge_models, method_called

    out = models_dir / _checked(name)
    return _made(merge_models(model, other, out, method=method_called(method), weight=weight, base=base, models_dir=models_dir), models_dir)


def check_model(model: str, layout: str, models_dir: Path) -> tuple[Found, list[str]]:
    """What there is to say of a model that was held to a layout, and what is wrong with it, a line each.

    Raises ValueError when there is no such model."""
    from burnish.trainer.models.bedrock import bedrock_problems

    folder = find_model(model, models_dir, need_sound=False)
    data: dict[str, Any] = {"folder": str(folder), "layout": layout}
    if layout == "bedrock":
        problems, said = list(bedrock_problems(folder)), f"{folder} has the layout of Bedrock's custom model import"
        return Found([printable(said)], {**data, "problems": problems}), [f"{folder}: {problem}" for problem in problems]
    try:
        manifest = _sound(folder)
    except ValueError as error:
        return Found([], {**data, "digest": None, "problems": [str(error)]}), [str(error)]
    digest = f"{DIGEST}{manifest.digest}, every file as recorded" if manifest is not None else "no manifest"
    said = f"{folder} is sound: {digest}; tokenizer, chat template and a forward pass work"
    return Found([printable(said)], {**data, "digest": manifest.digest if manifest is not None else None, "problems": []}), []


def _sound(folder: Path) -> Manifest | None:
    """The manifest of a model that holds to its digests and works, None where it has none. Raises ValueError where it does not."""
    from burnish.trainer.models.importing import no_progress_bars, verify_model

    check_model_folder(folder)
    verify_digests(folder)
    with no_progress_bars():
        verify_model(folder)
    return own_manifest(folder)


def delete_named(name: str, models_dir: Path) -> Found:
    """Remove `models_dir/name` and say what is gone."""
    manifest = delete_model(name, models_dir)
    return Found([printable(f"removed {models_dir / name} ({DIGEST}{manifest.digest[:12]})")], _row(models_dir / name, manifest))


def list_named(models_dir: Path) -> tuple[Found, list[str]]:
    """Every model under `models_dir`, and a line for each that cannot be read."""
    found, unread = models_and_unread(models_dir)
    rows = [
        (folder.name, manifest.stage, f"{manifest.parameters / 1e6:.1f} M", manifest.digest[:12], manifest.source)
        for folder, manifest in found
    ]
    none = [f"no models in {models_dir}/; make one with `burnish models new` or `burnish models import`"]
    lines = table_lines(("name", "stage", "parameters", "sha256", "source"), rows) if rows else [] if unread else none
    data = [_row(folder, manifest) for folder, manifest in found]
    data += [{"name": folder.name, "folder": str(folder), "error": why} for folder, why in unread]
    return Found(lines, data), [printable(f"{folder.name} cannot be read: {why}").replace("\n", "\\n") for folder, why in unread]


def show_named(model: str, models_dir: Path) -> Found:
    """What a model's manifest says, as it says it. Its files are not read: `burnish models check` does that."""
    folder = find_model(model, models_dir, need_weights=False)
    manifest = read_manifest(folder)
    facts = [("folder", str(folder)), ("digest", f"{DIGEST}{manifest.digest}"), ("tokenizer", f"{DIGEST}{manifest.tokenizer_sha256}")]
    said = manifest.model_dump(mode="json", exclude={"files", "lineage", "parents", "training", "metrics", "measured", "format"})
    facts += [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in said.items()]
    if (training := manifest.training) is not None:
        facts.append(("trained by", f"{training.run}, step {training.step} of {training.phase} ({training.kind})"))
        facts.append(("recipe", f"{DIGEST}{training.recipe_sha256}"))
        facts += [("data", f"{use.source}, {_count(use.examples)}{DIGEST}{use.sha256 or 'none'}{_beside(use)}") for use in training.data]
    facts += [("measured", f"{one.what}, {one.how}: {one.told}") for one in manifest.measured]
    facts += [(f"metric {name}", f"{value:.6g}") for name, value in sorted(manifest.metrics.items())]
    facts += [(f"file {name}", f"{DIGEST}{digest}") for name, digest in sorted(manifest.files.items())]
    whole = {"folder": str(folder), "digest": manifest.digest, "tokenizer_sha256": manifest.tokenizer_sha256}
    return Found(table_lines(("", ""), facts)[1:], whole | manifest.model_dump(mode="json"))


def lineage_named(model: str, models_dir: Path) -> Found:
    """A model, and below it what it was made from, each indented below what was made of it. What a model was made from is said where the
    model is first named: of two that are merged again and again there are more ways back than lines that anybody could read."""
    manifest = read_manifest(find_model(model, models_dir, need_weights=False))
    known = {ancestor.digest: ancestor for ancestor in manifest.lineage}
    lines, said = list[str](), set[str]()
    left = [(manifest.as_ancestor, 0)]
    while left:
        one, depth = left.pop()
        again = one.digest in said  # also where a manifest from elsewhere claims that it descends from itself
        said.add(one.digest)
        more = "  (see above)" if again and one.parents else ""
        lines.append(f"{'  ' * min(depth, DEEPEST)}{one.name}  {one.stage}  {DIGEST}{one.digest[:12]}  {one.source}{more}")
        if not again:
            left += [(known[parent], depth + 1) for parent in reversed(one.parents)]
    data = [one.model_dump(mode="json") for one in (manifest.as_ancestor, *reversed(manifest.lineage))]
    return Found([printable(line).replace("\n", "\\n") for line in lines], data)


def _beside(use: DataUse) -> str:
    return f", {use.told}" if use.told else ""


def _count(examples: int | None) -> str:
    return "" if examples is None else f"{examples:,} examples, "


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between them. Cells may hold what a model folder says of itself."""
    rows = [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def _made(manifest: Manifest, models_dir: Path, **more: list[str]) -> Found:
    """A model that was made. more: for a program; `same_as` are names of the same model."""
    what = f"{manifest.architecture}, {manifest.parameters / 1e6:.1f} M parameters, stage {manifest.stage}"
    lines = [f"{models_dir / manifest.name}: {what}, {DIGEST}{manifest.digest[:12]}, from {manifest.source}"]
    if same := more.get("same_as"):
        lines.append(f"it is the same model as {', '.join(same)}")
    return Found([printable(line) for line in lines], {**_row(models_dir / manifest.name, manifest), **more})


def _row(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """A model in a row, for a program."""
    names = ("stage", "architecture", "parameters", "digest", "source")
    return {"name": folder.name, "folder": str(folder), **{name: getattr(manifest, name) for name in names}}


def _same(manifest: Manifest, models_dir: Path) -> list[str]:
    """The names under which the same model is already."""
    return [folder.name for folder, other in list_models(models_dir) if other.digest == manifest.digest and folder.name != manifest.name]


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"model name {name!r} must be made of letters, digits, '.', '_' and '-'; give another with --name")
    return name
