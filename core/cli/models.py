"""What `burnish models …` does around `burnish.trainer.models.importing`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from burnish.cli.arguments import parse_arguments
from burnish.envs.registry import did_you_mean
from burnish.inspector.text import printable
from burnish.recipe.components import load_function
from burnish.trainer.data.sources import read_documents
from burnish.trainer.models.finding import default_model_name, list_models
from burnish.trainer.models.folder import ModelRecord, Stage
from burnish.trainer.models.importing import import_model, new_model


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text for a new tokenizer: files, or a generator `module:function` with arguments `key=value` that makes `count` texts."""

    files: tuple[Path, ...] = ()
    generate: str | None = None
    args: tuple[str, ...] = ()
    count: int = 2000

    def texts(self, seed: int) -> Iterator[str]:
        """Raises ValueError at once unless exactly one source is given, and while iterating when it holds nothing readable."""
        if bool(self.files) == (self.generate is not None):
            raise ValueError("a new model needs text for its tokenizer: give either --text FILE or --generate module:function")
        if self.generate is None:
            if self.args:
                raise ValueError("--arg has no effect without --generate")
            return (text for file in self.files for text in read_documents(file))
        return self._generated(load_function(self.generate, "--generate"), seed)

    def _generated(self, function: Callable[..., Iterable[object]], seed: int) -> Iterator[str]:
        for text in function(seed, self.count, **parse_arguments(self.args)):
            if not isinstance(text, str):
                raise ValueError(f"--generate {self.generate} must give strings, not {type(text).__name__}")
            yield text


def new_named(name: str, source: TextSource, size: str, seed: int, models_dir: Path) -> str:
    """Make `models_dir/name` and say what it is."""
    return _made(new_model(source.texts(seed), models_dir / _checked(name), size, seed), models_dir)


def import_named(source: str, name: str | None, stage: str | None, chat_template: Path | None, models_dir: Path) -> str:
    """Import `source` as `models_dir/name` and say what it is."""
    stages: list[Stage] = list(get_args(Stage))
    known = [known for known in stages if known == stage]
    if stage is not None and not known:
        raise ValueError(f"--stage {stage!r} is unknown{did_you_mean(stage, list(stages))}")
    out = models_dir / _checked(name or default_model_name(source))
    return _made(import_model(source, out, stage=known[0] if known else None, chat_template=chat_template), models_dir)


def list_lines(models_dir: Path) -> list[str]:
    rows = [(folder.name, record.stage, f"{record.parameters / 1e6:.1f} M", record.source) for folder, record in list_models(models_dir)]
    if not rows:
        return [f"no models in {models_dir}/; make one with `burnish models new` or `burnish models import`"]
    return table_lines(("name", "stage", "parameters", "source"), rows)


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between them. Cells may hold what a model folder says of itself."""
    rows = [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def _made(record: ModelRecord, models_dir: Path) -> str:
    size = f"{record.parameters / 1e6:.1f} M parameters"
    return f"{models_dir / record.name}: {record.architecture}, {size}, stage {record.stage}, from {record.source}"


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"model name {name!r} must be made of letters, digits, '.', '_' and '-'; give another with --name")
    return name
