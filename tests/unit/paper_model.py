"""A model folder that can be planned and rehearsed with, and holds no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from burnish.trainer.models.tokenizer import CHAT_TEMPLATE, MESSAGE_END, MESSAGE_START

HIDDEN, VOCABULARY = 32, 10


def write_paper_model(folder: Path) -> Path:
    """A folder that reads like a model of 32 x 10 + 100 parameters whose tokenizer gives one token per word and speaks ChatML."""
    folder.mkdir(parents=True)
    shape = {"num_hidden_layers": 2, "hidden_size": HIDDEN, "vocab_size": VOCABULARY, "num_attention_heads": 4, "intermediate_size": 24}
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps({**kind, **shape}))
    words = Tokenizer(models.WordLevel({"?": 0, "part": 1, MESSAGE_START: 2, MESSAGE_END: 3, "yes": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens([MESSAGE_START, MESSAGE_END])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=MESSAGE_END, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    save_file({"embed": np.zeros((VOCABULARY, HIDDEN), np.float32), "w": np.zeros(100, np.float32)}, folder / "model.safetensors")
    return folder
