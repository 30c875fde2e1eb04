"""Export: a checkpoint as a clean Hugging Face folder that any tool can load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from .finding import MODELS, verified_model
from .folder import WEIGHTS_INDEX, atomic_folder, copy_model_files, manifest_of, store_manifest, weight_files
from .importing import no_progress_bars, verify_model
from .manifest import Manifest, digests_of

PROBE_IDS: Final = list(range(3, 35))


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
        for file in [*weight_files(source), source / WEIGHTS_INDEX]:
            if file.is_file():
                shutil.copyfile(file, draft / file.name)
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
