"""A small byte-level BPE tokenizer with ChatML, trained on given text; and what any tokenizer puts around a document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
DOCUMENT_ENDS = (END_OF_TEXT, "<|end_of_text|>")
"""Tokens that end a document in families whose chat models end a turn with another one (ChatML models, Qwen, Llama 3, Granite)."""
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML for the roles system, user, assistant and tool; no system message is invented."""

PLAIN: Final = "plain"
"""What the template below is called where one is asked for."""
GIVE_TEMPLATE: Final = f"give one with `--chat-template FILE`, or with `--chat-template {PLAIN}` one in plain words,"
PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ message['role'] + ':\\n' + message['content'] + (eos_token if message['role'] == 'assistant' else '') + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""For a base model, whose tokenizer has no token of a chat: roles in plain words, and answers that end as its documents do."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE (Sennrich et al. 2016, over bytes) on `texts`.

    Every byte is in the vocabulary, so any text round-trips. Each digit is a token of its own: a number's tokens then follow its
    decimal places, and no merge depends on which numbers the text happened to hold. The end-of-sequence token is `<|im_end|>`, what an
    assistant message ends with; padding is `<|endoftext|>`.

    The vocabulary can end up smaller than `vocab_size` when the text is too short to merge that far. Raises ValueError when `vocab_size`
    cannot hold the bytes and the special tokens, or when there is no text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level tokenizer with ChatML needs at least {SMALLEST_VOCABULARY}")
    rows = [text for text in texts if text]
    if not rows:
        raise ValueError("the tokenizer has no text to train on; give at least one non-empty text")

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=MESSAGE_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[MESSAGE_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def document_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids that a document stands between in the model's own pre-training.

    Its end is the end-of-text token: `<|endoftext|>` or `<|end_of_text|>` where the tokenizer has one, since its `eos_token` may be what
    ends a chat turn, and that `eos_token` otherwise. It begins with what the tokenizer itself puts before a text; where that is nothing,
    with the end of the document before, as in training on documents one after the other (Radford et al. 2019).

    Raises ValueError for a tokenizer without any such token.
    """
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((special[token] for token in DOCUMENT_ENDS if token in special), tokenizer.eos_token_id)
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token, so documents cannot be told apart; set its eos_token in the model folder")
    plain, whole = (list(tokenizer("x", add_special_tokens=own)["input_ids"]) for own in (False, True))
    before = whole[: next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)]
    assert len(before) <= 1, f"the tokenizer puts {len(before)} tokens before a text"
    return (int(before[0]) if before else int(end)), int(end)
