"""The manifest of a model, `burnish.json` in its folder: what the model is, what it was made from, and the digest of each of its files.

A manifest is read as data that somebody else may have written: it names files of its own folder and nothing else. Where it says a path, an
address or a function (`source`, `data`), that is a note for people; nothing is ever opened by it. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...envs.pydantic_words import MOST_ERRORS, first_error
from ...rollout.store.own_files import own_file, read_whole

MANIFEST_FILE = "burnish.json"
CARD_FILE = "README.md"
WEIGHTS_SUFFIX = ".safetensors"
TOKENIZER_FILE = "tokenizer.json"
RELEASE = "release"
"""The folder in a package that holds what speaks for the model; its verdict says what of it is whole."""

Stage = Literal["none", "pretraining-partial", "pretraining-full", "mid-training", "sft", "post-training", "rft"]
"""How far a model's training has come. "none": random weights. "pretraining-partial": pre-training that has not ended.
"pretraining-full": a base model. "mid-training": continued on documents, or on documents and chats. "sft": taught conversations.
"post-training": taught and aligned by preferences or otherwise, as most published chat models are. "rft": reinforced here."""
MOST_BYTES = 4 << 20
"""Of a `burnish.json`."""
MAX_REASON = 1000
"""Characters of a reason that a manifest gives."""
STAGES: tuple[Stage, ...] = get_args(Stage)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""


FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""Of the files that a manifest speaks of; no part of a model is called otherwise."""


def _check_file_name(name: str) -> str:
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]


class Ancestor(BaseModel):
    """One earlier model of a lineage. parents: digests of the models that it was made from.

    Example: `Ancestor(digest="9f…", name="nano", stage="none", source="new:nano seed=0")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    name: str
    stage: Stage
    source: str = ""
    parents: tuple[Digest, ...] = ()


class BlendShare(BaseModel):
    """What a source of a blend had of it. name: as the blend calls the source. by: what is shared out. asked: its share of these, as the
    recipe says. drawn: the share that it had when the model was written, of what was drawn from the blend: samples where `by` is samples or
    tokens, and otherwise pairs, or the groups that tasks were sampled in. tokens: of the tokens that were trained. The last two are None
    where nothing was drawn, or trained.

    Example: `BlendShare(name="own", by="samples", asked=0.7, drawn=0.7, tokens=0.64)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    by: Literal["samples", "tokens", "pairs", "tasks"]
    asked: float = Field(ge=0, le=1)
    drawn: float | None = Field(default=None, ge=0, le=1)
    tokens: float | None = Field(default=None, ge=0, le=1)


class DataUse(BaseModel):
    """What a phase was trained on. source: as the recipe names it. sha256: of the file, or of the tokens that were made; of tasks that are
    made as they are needed, of what they are made by: environment, arguments and seeds, as canonical JSON. examples: rows, documents or
    conversations, None of such tasks. share: of a blend, None where there is one source. replayed: whether it was learned beside the
    episodes of reinforcement.

    Example: `DataUse(source="train.jsonl", sha256="5d…", examples=1420)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    sha256: Digest | None = None
    examples: int | None = Field(default=None, ge=0)
    share: BlendShare | None = None
    replayed: bool = False

    @property
    def told(self) -> str:
        """Its share of a blend in words, "" where there is none. Example: "own: 70.00% of samples asked for, 70.00% drawn, 64.10% of
        tokens"."""
        if self.share is None:
            return "replayed" if self.replayed else ""
        one = self.share
        said = [f"{one.asked:.2%} of {one.by} asked for"]
        said += [] if one.drawn is None else [f"{one.drawn:.2%} drawn"]
        said += [] if one.tokens is None else [f"{one.tokens:.2%} of trained tokens"]
        return f"{'replayed, ' if self.replayed else ''}{one.name}: {', '.join(said)}"


class Training(BaseModel):
    """The phase of a run that wrote a checkpoint. recipe_sha256: of the run's `config.json`, as canonical JSON. data: of this phase.

    Example: `Training(run="inspection-20260101-120000", phase="rft", kind="rft", step=40, recipe_sha256="ab…")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    phase: str
    kind: str
    step: int = Field(ge=0)
    recipe_sha256: Digest
    data: tuple[DataUse, ...] = ()


class Measurement(BaseModel):
    """What its run measured of a checkpoint once it was written. what: "success", of the recipe's held-out tasks, or a suite's id. how:
    tasks are played, "sampled" or "greedy"; "answers" and "texts" are a suite's kinds. value: the mean score, of texts the perplexity.
    n: tasks or items. low, high: its 95 % interval, None of a suite. retention: how much of the base's skill is left, None where it had
    none, and of tasks.

    Example: `Measurement(what="success", how="greedy", value=0.61, n=200, low=0.54, high=0.67)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    what: str
    how: Literal["sampled", "greedy", "answers", "texts"]
    value: float
    n: int = Field(ge=1)
    low: float | None = None
    high: float | None = None
    retention: float | None = None

    @property
    def told(self) -> str:
        """In words. Examples: "61.0% (95 %: 54.0% to 67.5%), n = 200", "perplexity 12.50, retention 0.985, n = 50"."""
        value = f"perplexity {self.value:.2f}" if self.how == "texts" else f"{self.value:.1%}"
        interval = "" if self.low is None or self.high is None else f" (95 %: {self.low:.1%} to {self.high:.1%})"
        kept = "" if self.retention is None else f", retention {self.retention:.3f}"
        return f"{value}{interval}{kept}, n = {self.n}"


class Manifest(BaseModel):
    """The `burnish.json` of a model folder.

    source: what it was made from, as a person typed it, or the checkpoint's name. parameters: count, tied weights once. files: SHA-256 of
    every file but the manifest and the card. parents: digests of the models that it was made from directly; lineage: these and all before
    them, oldest first. training: the phase that wrote it, None for a model that no run wrote. metrics: what was measured when it was
    written; measured: what its run measured of it since, which is no part of its identity. licence: as its source declares it.
    template_args: variables of the chat template that it was trained with, and is served with. not_promoted: why the run that wrote it
    refused to promote it, "" where it did not.

    Example: `Manifest(name="nano", stage="none", source="new:nano seed=0", architecture="LlamaForCausalLM", parameters=3_486_976, …)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[2] = 2
    name: str
    stage: Stage
    source: str
    architecture: str
    parameters: int = Field(ge=0, lt=2**63)
    files: dict[FileName, Digest]
    parents: tuple[Digest, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    training: Training | None = None
    metrics: dict[str, float] = {}
    measured: tuple[Measurement, ...] = ()
    licence: str | None = Field(default=None, max_length=200)
    template_args: dict[str, Any] = {}
    not_promoted: str = Field(default="", max_length=MAX_REASON)
    created_by: str
    created_at: datetime

    @model_validator(mode="after")
    def _lineage_is_whole(self) -> Manifest:
        known = {ancestor.digest for ancestor in self.lineage}
        missing = {*self.parents, *(parent for ancestor in self.lineage for parent in ancestor.parents)} - known
        if missing:
            raise ValueError(f"lineage: lacks the parent {min(missing)[:12]}")
        return self

    @property
    def digest(self) -> str:
        """The model's identity: SHA-256 of the lines `SHA256  NAME` of its files in name order, what `sha256sum` prints of them."""
        return listing_digest(self.files)

    @property
    def weights_sha256(self) -> str:
        """The same over the weight files alone."""
        return listing_digest({name: digest for name, digest in self.files.items() if name.endswith(WEIGHTS_SUFFIX)})

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of `tokenizer.json`: models with the same one read the same ids."""
        return self.files.get(TOKENIZER_FILE)

    @property
    def as_ancestor(self) -> Ancestor:
        return Ancestor(digest=self.digest, name=self.name, stage=self.stage, source=self.source, parents=self.parents)


def listing_digest(files: Mapping[str, str]) -> str:
    """SHA-256 of a listing of files and their digests, in name order."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def lineage_of(parents: Iterable[Manifest]) -> tuple[Ancestor, ...]:
    """The lineage of a model that is made from `parents`: theirs, then they themselves, each once, oldest first."""
    found: dict[str, Ancestor] = {}
    for parent in parents:
        for ancestor in (*parent.lineage, parent.as_ancestor):
            found.setdefault(ancestor.digest, ancestor)
    return tuple(found.values())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises ValueError when `burnish.json` is missing, leads out of the folder, is larger than any is, or
    does not fit the schema."""
    file = own_file(folder, MANIFEST_FILE)
    if file is None:
        raise ValueError(f"{folder} has no {MANIFEST_FILE}; bring the model in with `burnish models import {folder}`")
    try:
        return Manifest.model_validate_json(read_whole(file, MOST_BYTES))
    except ValidationError as error:
        if error.error_count() <= MOST_ERRORS and error.errors()[0]["loc"] == ("format",):
            raise ValueError(f"{file} is of a form that this burnish does not read; remove it and import the folder again") from error
        raise ValueError(f"{file} is not a valid manifest: {first_error(error)}") from error


def own_manifest(folder: Path) -> Manifest | None:
    """What `burnish.json` says of a model folder, None for one without, as every other tool writes them. Raises ValueError as
    `read_manifest` does when it is not sound."""
    return read_manifest(folder) if own_file(folder, MANIFEST_FILE) else None


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder by name, without manifest, card and what `FILE_NAME` is not the name of."""
    return {name: file_sha256(folder / name) for name in _entries(folder) if FILE_NAME.fullmatch(name) and (folder / name).is_file()}


def _entries(folder: Path) -> list[str]:
    """What lies in a model folder beside its manifest and its card, folders too. Names that begin with a dot are what version control and
    file managers leave: no pattern of transformers' or vLLM's finds them."""
    return sorted(name for path in folder.iterdir() if not (name := path.name).startswith(".") and name not in (MANIFEST_FILE, CARD_FILE))


def weights_sha256(folder: Path) -> str:
    """The digest of a folder's weight files alone, as `Manifest.weights_sha256` has it."""
    return listing_digest({file.name: file_sha256(file) for file in folder.glob(f"*{WEIGHTS_SUFFIX}")})


def verify_digests(folder: Path) -> Manifest | None:
    """Hold a folder to its manifest; None for one without. Every byte of the files that it records is read, and nothing of any other.

    Raises ValueError naming the file that is another than the manifest records, is missing, or was added: of any name, and any folder but
    that of a package's evidence, since transformers and vLLM look for files by patterns, and into folders.
    """
    manifest = own_manifest(folder)
    if manifest is None:
        return None
    found = [name for name in _entries(folder) if name != RELEASE or not (folder / name).is_dir()]
    fix = "copy or import the model again, or, if the change is meant, remove its burnish.json and import the folder under a new name"
    for name in sorted({*manifest.files, *found}):
        if name not in found:
            raise ValueError(f"model folder {folder} lacks {name}, which its {MANIFEST_FILE} records; {fix}")
        if name not in manifest.files:
            shown = name if FILE_NAME.fullmatch(name) else repr(name)
            raise ValueError(f"model folder {folder} holds {shown}, which its {MANIFEST_FILE} does not record; {fix}")
    for name, digest in manifest.files.items():
        if file_sha256(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is not the file that its {MANIFEST_FILE} records: it was changed after it was written; {fix}"
            )
    return manifest


def json_sha256(data: Any) -> str:
    """SHA-256 of plain data as canonical JSON: keys sorted, no spaces."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
