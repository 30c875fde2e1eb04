"""Export: a checkpoint as a clean Hugging Face folder that any tool can load."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..trainer.models.finding import find_model
from ..trainer.models.folder import ModelRecord, atomic_folder, copy_model_files, record_of, weight_files, write_record
from ..trainer.models.importing import no_progress_bars, verify_model

WEIGHTS_INDEX = "model.safetensors.index.json"
PROBE_IDS = list(range(3, 35))


def export_checkpoint(checkpoint: str | Path, out: Path, models_dir: Path = Path("models")) -> ModelRecord:
    """Write a checkpoint (a run, a checkpoint folder, a model folder or a model's name) to `out` without the training state.

    `out` holds `config.json`, the tokenizer with its chat template, `generation_config.json`, `*.safetensors` and the `burnish.json` with
    the lineage. It is verified as an import would be, and its logits on one probe sequence equal those of the checkpoint bit for bit.
    Raises ValueError when the checkpoint is not sound, `out` exists, or the copy does not behave like the original.
    """
    source = find_model(checkpoint, models_dir)
    trained = record_of(source)
    with atomic_folder(out) as draft, no_progress_bars():
        copy_model_files(source, draft)
        for file in [*weight_files(source), source / WEIGHTS_INDEX]:
            if file.is_file():
                shutil.copyfile(file, draft / file.name)
        record = write_record(
            draft,
            name=out.name,
            stage=trained.stage,
            source=trained.source,
            parents=trained.parents,
            template_args=trained.template_args,
        )
        if record.weights_sha256 != trained.weights_sha256:
            raise ValueError(f"the weights in {source} are not those its burnish.json records; it was changed after it was written")
        verify_model(draft)
        _compare_forward(source, draft)
    return record


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
