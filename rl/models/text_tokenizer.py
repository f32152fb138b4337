"""A small byte-level BPE tokenizer: any words can be encoded, frequent ones become one token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Chameleon's names: its processor puts pictures between <racm3:break> and <eoss>.
BEGIN_TEXT, END_TEXT, PAD, BEGIN_IMAGE, END_IMAGE, IMAGE = "<s>", "</s>", "<pad>", "<racm3:break>", "<eoss>", "<image>"
SPECIAL_TOKENS = [BEGIN_TEXT, PAD, END_TEXT, IMAGE, END_IMAGE, BEGIN_IMAGE]


@dataclass(frozen=True)
class Markers:
    """Names of the tokens that are no words, in the order of their ids, and which of them stand around a text."""

    names: Sequence[str]
    begin: str
    end: str
    pad: str


CHAMELEON = Markers(SPECIAL_TOKENS, BEGIN_TEXT, END_TEXT, PAD)
GEMMA = Markers(["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>"], "<bos>", "<eos>", "<pad>")
"""Gemma's first tokens, and Liquid's names around a picture."""


def train_text_tokenizer(texts: Iterable[str], size: int, markers: Markers = CHAMELEON) -> PreTrainedTokenizerFast:
    """Train on sentences; `size` is the vocabulary with the 256 bytes and the markers (at least 262)."""
    tokenizer = Tokenizer(models.BPE())
    # A space before the first word, so that a word has the same token wherever it stands.
    tokenizer.normalizer = normalizers.Prepend(" ")
    # Words keep their digits: 'a1' names a cell and can become one token.
    words = Regex(r" ?\w+| ?[^\s\w]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(markers.names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=markers.begin,
        eos_token=markers.end,
        pad_token=markers.pad,
        clean_up_tokenization_spaces=False,
    )
