"""Making and importing models.

`new_model` makes a small Llama from scratch; `import_model` brings in what `sources.py` fetches. Both end in `verify_model` and appear
under their final name only when everything held.

torch and transformers are imported inside the functions that need them, so that reading this module costs nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...envs.registry import did_you_mean
from ...rollout.chat_template import render_chat
from ...rollout.tokenizer import load_tokenizer
from ...rollout.tokenizer_files import refused_by_tokenizers
from .config_file import check_architecture
from .folder import (
    Origin,
    atomic_folder,
    check_model_folder,
    stop_token_ids,
    store_manifest,
    write_manifest,
)
from .gguf_file import split_as_read
from .manifest import Manifest, Stage, verify_digests
from .sources import CODE_KEYS, Fetched, check_source_files, fetch, is_clean
from .tokenizer import GIVE_TEMPLATE, PLAIN, PLAIN_TEMPLATE, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelSize(BaseModel):
    """Dimensions of a new Llama. head_dim is hidden / heads: 32 or 64 runs on every engine.

    Example: `ModelSize(hidden=256, layers=4, heads=8, intermediate=704)` has 3.5 million parameters with 1024 vocabulary entries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(default=256, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=8, gt=0)
    intermediate: int = Field(default=704, gt=0)
    vocab_size: int = Field(default=1024, gt=0)
    max_position: int = Field(default=1024, gt=0)

    @model_validator(mode="after")
    def _check_heads(self) -> ModelSize:
        if self.hidden % self.heads or (self.hidden // self.heads) % 32:
            raise ValueError(f"hidden {self.hidden} over {self.heads} heads give a head size that is no multiple of 32")
        return self


SIZES: Final = {"nano": ModelSize(), "micro": ModelSize(layers=6, intermediate=1024)}


def new_model(texts: Iterable[str], out: Path, size: str | ModelSize = "nano", seed: int = 0) -> Manifest:
    """Make a Llama with random weights and a tokenizer trained on `texts`, in the folder `out`.

    Embeddings are tied. Weights are normal with the small initialisation of Nguyen and Salazar (2019), the matrices that write into the
    residual stream scaled down with depth as in GPT-2 (Radford et al. 2019). The same texts, size and seed give the same files.

    Raises ValueError on an unknown size, on no text, or when `out` exists.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    dims = _model_size(size)
    with atomic_folder(out) as draft, no_progress_bars():
        tokenizer = train_tokenizer(texts, dims.vocab_size, dims.max_position)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=dims.hidden,
            intermediate_size=dims.intermediate,
            num_hidden_layers=dims.layers,
            num_attention_heads=dims.heads,
            num_key_value_heads=dims.heads,
            head_dim=dims.hidden // dims.heads,
            max_position_embeddings=dims.max_position,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config).float()
            _initialise(model, dims)
        stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
        _save(model, tokenizer, draft)
        label = size if isinstance(size, str) else "custom"
        manifest = write_manifest(draft, Origin(name=out.name, stage="none", source=f"new:{label} seed={seed}"))
        verify_model(draft)
    return manifest


def _model_size(size: str | ModelSize) -> ModelSize:
    if isinstance(size, ModelSize):
        return size
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown{did_you_mean(size, list(SIZES))}")
    return SIZES[size]


def _initialise(model: PreTrainedModel, dims: ModelSize) -> None:
    import torch

    std = (2 / (5 * dims.hidden)) ** 0.5
    residual_std = std / (2 * dims.layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)  # norm gains; a Llama has no biases
            elif "embed_tokens" in name:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.normal_(0.0, residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else std)


def import_model(
    source: str | Path, out: Path, *, stage: Stage | None = None, chat_template: Path | None = None, licence: str | None = None
) -> Manifest:
    """Bring a model in as a verified safetensors folder `out`, with its manifest and card.

    source: see `fetch`. A folder with a manifest is held to its digests and copied as it is: it stays the model that it was, digest and
    lineage included. Of any other, weights keep their precision; a GGUF is dequantised to float32; pickled `*.bin` weights are read only as
    plain tensors (torch's `weights_only`) and leave as safetensors; code that comes with a model is never run.
    stage: how far the model was trained; None takes the source's own manifest, or "post-training" when there is none.
    chat_template: a Jinja file for a model that has no template of its own, or "plain" for burnish's (`tokenizer.PLAIN_TEMPLATE`). licence:
    instead of what the source declares.

    Raises ValueError with one sentence when the source is missing, incomplete, damaged, unsupported or fails `verify_model`.
    """
    with tempfile.TemporaryDirectory(prefix="burnish-import-") as scratch, atomic_folder(out) as draft, no_progress_bars():
        found = fetch(str(source), Path(scratch))
        if found.gguf is None:
            check_source_files(found.folder, chat_template is not None)
        own = verify_digests(found.folder) if found.gguf is None else None
        if own is not None and chat_template is None and is_clean(found.folder, own):
            manifest = _copied(
                found.folder, own, draft, Origin(name=out.name, stage=stage or own.stage, source=str(source), licence=licence)
            )
        else:
            model, tokenizer = _load(found, str(source))
            _give_template(tokenizer, chat_template, str(source))
            _save(model, tokenizer, draft)
            del model
            parents = () if own is None else (own,)
            declared = licence or (own.licence if own is not None else found.licence)
            stage = stage or (own.stage if own is not None else "post-training")
            manifest = write_manifest(draft, Origin(name=out.name, stage=stage, source=str(source), parents=parents, licence=declared))
        verify_model(draft)
    return manifest


def _copied(folder: Path, own: Manifest, draft: Path, origin: Origin) -> Manifest:
    """The same files under another name; the copy is held to the digests of the original."""
    for name in own.files:
        shutil.copyfile(folder / name, draft / name)
    manifest = own.model_copy(
        update={"name": origin.name, "stage": origin.stage, "source": origin.source, "licence": origin.licence or own.licence}
    )
    store_manifest(draft, manifest)
    verify_digests(draft)
    return manifest


def _give_template(tokenizer: PreTrainedTokenizerBase, chat_template: Path | None, source: str) -> None:
    if chat_template is not None:
        plain = chat_template == Path(PLAIN)
        if not plain and not chat_template.is_file():
            raise ValueError(f'chat template {chat_template} is neither a file nor "{PLAIN}"')
        tokenizer.chat_template = PLAIN_TEMPLATE if plain else chat_template.read_text()
    if not tokenizer.chat_template:
        raise ValueError(f"{source} has no chat template; {GIVE_TEMPLATE} when importing it")


def _load(found: Fetched, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Said outright: left open, transformers asks on the terminal whether to run code that comes with a model.
    where: dict[str, Any] = {"local_files_only": True, **({"gguf_file": found.gguf} if found.gguf else {})}
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False, **where)
        model, loading = AutoModelForCausalLM.from_pretrained(
            found.folder, trust_remote_code=False, dtype="auto", weights_only=True, output_loading_info=True, **where
        )
    except BaseException as error:  # transformers and its parsers raise many kinds for one cause: this folder cannot be loaded
        if not refused_by_tokenizers(error):
            raise
        raise ValueError(f"{source} cannot be loaded as a model: {_first_line(error)}") from error
    check_architecture({"architectures": [type(model).__name__]}, source)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} weights that its config asks for, {missing[0]} first; copy or download it again")
    if found.gguf:
        split_as_read(found.folder / found.gguf, tokenizer)
        _forget_gguf(model)
    return model, tokenizer


def _forget_gguf(model: PreTrainedModel) -> None:
    """transformers dequantises a GGUF to plain float32 and still marks the model as quantised, which it then refuses to save."""
    del model.config.quantization_config
    model.hf_quantizer = None


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    for owner in (model.config, tokenizer):  # where code is that came with it: whoever loads the copy must not be asked to run it
        for name in CODE_KEYS:
            if hasattr(owner, name):
                delattr(owner, name)
    for name in CODE_KEYS:
        tokenizer.init_kwargs.pop(name, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


ROUND_TRIP_TEXTS: Final = ("Bore 12.504 mm, limit ±0.02 mm.", 'measure(part=17, feature="bore")\n\n  - ok', "Prüfung: 合格 🙂")


def verify_model(folder: Path) -> None:
    """Load a model folder and hold it to what training and serving rely on.

    The files are whole and the architecture is supported; text survives the tokenizer both ways; every token id has an embedding; the chat
    template renders, and what ends an assistant message in it is a stop token; one forward pass gives finite logits.
    Raises ValueError with one sentence otherwise.
    """
    try:
        _verify(folder)
    except ValueError:
        raise
    except BaseException as error:  # a folder can be wrong in more ways than transformers has errors for
        if not refused_by_tokenizers(error):
            raise
        raise ValueError(f"{folder} does not work as a model: {_first_line(error)}") from error


def _verify(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    check_model_folder(folder)
    tokenizer = load_tokenizer(folder)
    for text in ROUND_TRIP_TEXTS:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False)
        if back != text:
            raise ValueError(f"the tokenizer of {folder} does not round-trip: {text!r} came back as {back!r}")
    prompt_ids = _check_chat_template(tokenizer, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, dtype="auto").eval()
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer of {folder} has {len(tokenizer)} tokens and the model embeds only {rows}")
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids])).logits
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the model in {folder} gives logits that are not finite; its weights are damaged")


def _check_chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    question, answer = {"role": "user", "content": "Is part 17 good?"}, {"role": "assistant", "content": "pass"}
    try:
        prompt = render_chat(tokenizer, [question], generate=True)
        whole = render_chat(tokenizer, [question, answer], generate=False)
    except Exception as error:  # a template is a program of its own and fails in its own ways
        raise ValueError(f"the chat template of {folder} does not render a user and an assistant message: {_first_line(error)}") from error
    tail = tokenizer.encode(whole.rpartition("pass")[2], add_special_tokens=False)
    stops = stop_token_ids(folder)
    if not set(tail) & set(stops):
        names = ", ".join(tokenizer.convert_ids_to_tokens(list(stops)))
        raise ValueError(f"the chat template of {folder} does not end an answer with a stop token ({names}); correct eos_token_id")
    return list(tokenizer.encode(prompt, add_special_tokens=False))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it reads or writes; ours are the only ones a user should see."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    shown, unasked = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    gguf.tqdm = logging.tqdm  # the one place that draws a bar without asking whether bars are wanted
    try:
        yield
    finally:
        gguf.tqdm = unasked
        if shown:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no detail'}"
