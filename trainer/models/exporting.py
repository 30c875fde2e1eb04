"""Export: a checkpoint as a clean Hugging Face folder that any tool can load, or as a GGUF file. See `bedrock.py` for a third form."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .finding import MODELS, verified_model
from .folder import atomic_folder, copy_model_files, copy_weights, manifest_of, store_manifest
from .gguf_file import write_gguf
from .importing import ROUND_TRIP_TEXTS, import_model, no_progress_bars, verify_model
from .manifest import Manifest, digests_of

if TYPE_CHECKING:
    pass

PROBE_IDS: Final = list(range(3, 35))
ROUNDING: Final = 1e-4
"""How far logits may be apart that differ in the order of sums only."""


def export_folder(checkpoint: str | Path, out: Path, models_dir: Path = MODELS) -> Manifest:
    """Write a checkpoint (a run, a checkpoint folder, a model folder or a model's name) to `out` without the training state.

    `out` holds `config.json`, the tokenizer with its chat template, `generation_config.json`, `*.safetensors`, and the manifest with the
    lineage: it is the same model, digest included. Trained adapters are merged into it already. It is verified as an import would be, and
    its logits on one probe sequence equal those of the checkpoint bit for bit.
    Raises ValueError when the checkpoint is not sound, `out` exists, or the copy does not behave like the original.
    """
    source = verified_model(checkpoint, models_dir)
    trained = manifest_of(source)
    with atomic_folder(out) as draft, no_progress_bars():
        copy_model_files(source, draft)
        copy_weights(source, draft)
        manifest = trained.model_copy(update={"name": out.name, "files": digests_of(draft)})
        store_manifest(draft, manifest)
        verify_model(draft)
        _compare_forward(source, draft)
    return manifest


def _compare_forward(source: Path, copy: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    logits = []
    for folder in (source, copy):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, dtype="auto").eval()
        ids = torch.tensor([PROBE_IDS]) % model.config.vocab_size
        with torch.no_grad():
            logits.append(model(ids).logits)
    if not torch.equal(logits[0], logits[1]):
        gap = (logits[0] - logits[1]).abs().max().item()
        raise ValueError(f"the export of {source} gives other logits than the checkpoint (largest difference {gap:.3g})")


def export_gguf(checkpoint: str | Path, out: Path, models_dir: Path = MODELS) -> Manifest:
    """Write a checkpoint as one GGUF file. It appears once it reads back as the same model: the same ids of texts, and logits that differ
    by rounding at most.

    Raises ValueError when the checkpoint is not sound, `out` exists or is not called `*.gguf`, or the form cannot say what the model is.
    """
    source = verified_model(checkpoint, models_dir)
    if out.suffix != ".gguf":
        raise ValueError(f"{out} must be the name of a file that ends in .gguf")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another place or remove it")
    manifest = manifest_of(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch, no_progress_bars():
        draft = Path(scratch) / out.name
        write_gguf(source, draft, manifest.name, manifest.licence)
        _check_reads_back(draft, source, Path(scratch))
        draft.rename(out)
    return manifest


def _check_reads_back(file: Path, source: Path, scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import_model(file, scratch / "back")
    own, back = (
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False) for folder in (source, scratch / "back")
    )
    for text in ROUND_TRIP_TEXTS:
        if own.encode(text, add_special_tokens=False) != back.encode(text, add_special_tokens=False):
            raise ValueError(f"{source} is not exported as GGUF: the tokenizer in it would read {text!r} as other ids; export a folder")
    logits = []
    for folder in (source, scratch / "back"):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(torch.tensor([PROBE_IDS]) % model.config.vocab_size).logits)
    gap = (logits[0] - logits[1]).abs().max().item()
    if gap > ROUNDING:
        raise ValueError(f"{source} is not exported as GGUF: read back, its logits differ by {gap:.3g}")
