"""The model card: a `README.md` beside a model's weights, written from its manifest, in the form that model hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from .manifest import Ancestor, Manifest

SAID = {
    "none": "has random weights",
    "pretraining-partial": "is part of the way through pre-training",
    "pretraining-full": "is a base model: it continues text and was taught no conversation",
    "mid-training": "was trained on after its pre-training",
    "sft": "was fine-tuned on conversations",
    "post-training": "was fine-tuned and aligned",
    "rft": "was fine-tuned by reinforcement",
}
"""Of a model in each stage."""


def model_card(manifest: Manifest) -> str:
    """The card's text. What a manifest says of itself may come from elsewhere: none of it is taken as Markdown."""
    front = {
        **({"license": manifest.licence} if manifest.licence else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["burnish", manifest.stage],
    }
    head = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]  # JSON is YAML
    parts = [
        "\n".join(head),
        f"# {plain(manifest.name)}",
        f"A `{plain(manifest.architecture)}` of {manifest.parameters / 1e6:,.1f} M parameters that {SAID[manifest.stage]}.",
        _table(("", ""), _facts(manifest)),
    ]
    if manifest.training is not None:
        uses = [
            (plain(use.source), f"{use.examples:,}" if use.examples is not None else "–", short(use.sha256), plain(use.told))
            for use in manifest.training.data
        ]
        parts += ["## Data of its last phase", _table(("source", "examples", "sha256", "of the blend"), uses)] if uses else []
    if manifest.metrics:
        rows = [(plain(name), f"{value:.6g}") for name, value in sorted(manifest.metrics.items())]
        parts += ["## Measured when it was written", _table(("metric", "value"), rows)]
    if manifest.measured:
        measured = [(plain(f"{one.what}, {one.how}"), plain(one.told)) for one in manifest.measured]
        parts += ["## Measured by its run", _table(("what", "found"), measured)]
    if manifest.lineage:
        parts += [
            "## What it was made from, oldest first",
            _table(("model", "stage", "source", "digest"), map(_ancestor, manifest.lineage)),
        ]
    files = [(plain(name), digest) for name, digest in sorted(manifest.files.items())]
    parts += ["## Files", _table(("file", "sha256"), files)]
    parts.append(f"Written by {plain(manifest.created_by)} on {manifest.created_at:%Y-%m-%d} from `burnish.json` beside it.")
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text on one line that Markdown and HTML find nothing in."""
    line = re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in text)).strip()
    return re.sub(r"([\\`*_{}\[\]()#!|<>&~])", r"\\\1", line)


def short(digest: str | None) -> str:
    """The first characters of a digest, which are what commands take."""
    return digest[:12] if digest else "–"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    facts = [("digest", f"sha256:{manifest.digest}"), ("stage", manifest.stage), ("source", plain(manifest.source))]
    facts.append(("licence", plain(manifest.licence or "not declared")))
    if manifest.tokenizer_sha256:
        facts.append(("tokenizer", f"sha256:{manifest.tokenizer_sha256}"))
    if manifest.template_args:
        facts.append(("chat template's variables", plain(json.dumps(manifest.template_args))))
    if manifest.not_promoted:
        facts.append(("not promoted", plain(manifest.not_promoted)))
    if (training := manifest.training) is not None:
        facts.append(("trained by", plain(f"step {training.step} of phase {training.phase} ({training.kind}) of run {training.run}")))
        facts.append(("recipe", f"sha256:{training.recipe_sha256}"))
    return facts


def _ancestor(ancestor: Ancestor) -> tuple[str, ...]:
    return plain(ancestor.name), ancestor.stage, plain(ancestor.source), short(ancestor.digest)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
