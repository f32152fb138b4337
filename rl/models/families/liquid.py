"""Liquid (arXiv 2412.04332): a plain Gemma whose vocabulary is longer by the codes of Chameleon's VQGAN.

Codes have no names: code c is the id 256,000 + c. Markers are Gemma's unused tokens. Checkpoints hold no VQ weights:
name Meta's `vqgan.ckpt`, or a folder that has them, as `vq`. Gemma's embeddings are scaled inside its forward and its
head is tied to them, so adapters leave both alone. A small base of one's own (`liquid_small.py`) has fewer words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from rl.codes import Grid
from rl.errors import RewindError
from rl.models.families.vqgan import VQGANBackbone, cell_of
from rl.models.families.vqgan_files import decoder_of, key_of, put, quiet_transformers, vq_weights
from rl.models.grammar import PictureGrammar, Template
from rl.models.layout import TokenLayout
from rl.models.settings import Settings
from rl.models.sizes import PictureSize
from rl.models.vq import VQDecoder
from rl.models.vq_files import VQ_FILE, write_vq_config

VOCABULARY, WORDS = 264_192, 256_000
BEGIN_IMAGE, END_IMAGE, NO_CONDITION, END_TURN = 7, 8, 9, 107
BEGIN, END = "<boi>", "<eoi>"
UNUSED = re.compile(r"<unused\d+>|<start_of_turn>|<end_of_turn>|<unconditional>|<mask>|<2mass>|\[@BOS@\]")


class LiquidVLM(VQGANBackbone):
    """Liquid on Gemma."""

    family, model_type = "liquid", "gemma"
    template = Template(  # source first, as the models of arXiv 2602.06130 are trained
        fdm=("<bos>", "{source}", "\n", "Generate the next image after this action: ", "{action}", "{header}"),
        fdm_free=("<bos>", "{source}", "\n", "<unconditional>", "{header}"),
        idm=(
            *("<bos>", "<start_of_turn>", "user\n", "{source}", "{target}", "\n"),
            "Which action leads from the first image to the second?",
            *("<end_of_turn>", "\n", "<start_of_turn>", "model\n"),
        ),
        markers={"<unconditional>": NO_CONDITION, "<start_of_turn>": END_TURN - 1, "<end_of_turn>": END_TURN},
    )

    def __init__(
        self,
        model: GemmaForCausalLM,
        vq: tuple[ChameleonVQVAE, VQDecoder | None],
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        known_words: Sequence[str] | None = None,
    ) -> None:
        self.model = self._gemma = model  # `_gemma` stays the transformers model when peft wraps `self.model`
        size = PictureSize.of(vq[0].config.resolution)
        self._set_up(tokenizer, name, _layout(model, vq[0].config, tokenizer, name), vq, size, known_words)

    def transformer(self) -> nn.Module:
        return self._gemma.model  # type: ignore[no-any-return]

    def _head(self) -> Tensor:
        return self._gemma.lm_head.weight  # type: ignore[no-any-return]

    def save(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self._gemma.save_pretrained(folder, max_shard_size=max_shard_size)
        save_file(self.vqmodel.state_dict(), folder / VQ_FILE)
        write_vq_config(folder, self.vqmodel.config.to_dict())
        self._save_decoder(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def recognises(cls, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "gemma" and config.get("vocab_size") == VOCABULARY

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        known_words: Sequence[str] | None,
        settings: Settings | None = None,
        vq_folder: Path | None = None,
    ) -> LiquidVLM:
        """Open a checkpoint folder of Gemma's classes and the VQGAN that belongs to it.

        Raises:
            RewindError: weights that do not fit, no VQ tokenizer, another picture size than the VQGAN's.
        """
        settings = settings or Settings()
        found = vq_weights(folder, vq_folder)
        vqmodel = ChameleonVQVAE(ChameleonVQVAEConfig(**found.config)).eval()
        put(vqmodel, found.encoder, f"the VQ tokenizer in {found.where}")
        if settings.picture_size not in (None, PictureSize.of(vqmodel.config.resolution)):
            raise RewindError(
                f"{name} knows pictures of {vqmodel.config.resolution} pixels alone: leave image_size out"
            )
        with quiet_transformers():
            model, report = GemmaForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings.arguments()
            )
        wrong = sorted({key_of(key) for kind in report if kind.endswith("_keys") for key in report[kind]})
        if wrong:
            raise RewindError(
                f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
                f"of another shape, e.g. '{wrong[0]}'"
            )
        model.eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return cls(model, (vqmodel, decoder_of(vqmodel.config, found, folder)), tokenizer, name, known_words)


def _layout(
    model: GemmaForCausalLM, vq_config: ChameleonVQVAEConfig, tokenizer: PreTrainedTokenizerFast, name: str
) -> TokenLayout:
    published, codes = model.config.vocab_size == VOCABULARY, vq_config.num_embeddings
    first = WORDS if published else len(tokenizer)
    if first + codes != model.config.vocab_size:
        raise RewindError(
            f"{name} has {model.config.vocab_size - first} ids behind its words and the VQ tokenizer {codes} codes: "
            "they do not belong together"
        )
    side = vq_config.resolution // cell_of(vq_config)
    names = tokenizer.get_vocab()
    begin, end = (BEGIN_IMAGE, END_IMAGE) if published else (names[BEGIN], names[END])
    no_text = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, begin, end}
    no_text |= {number for word, number in names.items() if UNUSED.fullmatch(word)}
    return TokenLayout(
        image_ids_V=torch.arange(first, first + codes),
        text_ids_V=torch.tensor([i for i in range(min(first, len(tokenizer))) if i not in no_text]),
        grammar=PictureGrammar(Grid(side, side), (begin,), (end,)),
        begin_text=tokenizer.bos_token_id,
        end_text=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
