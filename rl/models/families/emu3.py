"""Emu3 (arXiv 2409.18869) in transformers' classes: pictures that spell out their size and end each row.

A picture is begin, "rows*columns" a digit a token, the image token, each row and its end, the end of a frame, end. One
code stands for 8 x 8 pixels. The VQ tokenizer is made for video. It is taken out of the model and stays in float32, in
evaluation mode (it normalises by running means) and out of reach of adapters, which go by names that it has too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3VQVAE, PreTrainedTokenizerFast

from rl.actions import NUM_BINS
from rl.codes import Grid
from rl.errors import RewindError
from rl.models.actions import BinTokens
from rl.models.families import emu3_original as original
from rl.models.families.emu3_stills import latents_of_stills, pixels_of_stills
from rl.models.families.vqgan import cell_of
from rl.models.families.vqgan_files import key_of, put, quiet_transformers, vq_weights
from rl.models.grammar import PictureGrammar, Template
from rl.models.layout import TokenLayout
from rl.models.settings import Settings
from rl.models.sizes import PictureSize
from rl.models.unified import UnifiedVLM
from rl.models.vq import codes_of, to_pixels, to_uint8
from rl.running.files import read_json

CODE_NAME = re.compile(r"<\|visual token (\d+)\|>")
NO_WORD = re.compile(r"<\|.*\|>|<image>")
ROW_END, FRAME_END = "<|extra_200|>", "<|extra_201|>"
BEGIN_ACTION, END_ACTION = "<|extra_198|>", "<|extra_199|>"
BEGIN_IMAGE, IMAGE_TOKEN, END_IMAGE = "<|image start|>", "<|image token|>", "<|image end|>"
_MARKERS = (BEGIN_IMAGE, IMAGE_TOKEN, END_IMAGE, ROW_END, FRAME_END, *"0123456789*")
PIXELS_AT_ONCE = 2**18
"""A still of 512 x 512 has 256 channels in the encoder's first layers: a quarter of a gigabyte for each."""
PRAISE = " masterpiece, film grained, best quality."
BLAME = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""What the publishers' examples add to a prompt, and what they guide away from."""


class Emu3VLM(UnifiedVLM):
    """Emu3-Gen and Emu3-Chat, as transformers stores them or as their own code does."""

    family, model_type = "emu3", "emu3"
    usual_sizes: ClassVar[tuple[int, ...]] = (512, 384, 256)
    """Sides of a picture in pixels, the first that fits twice into the positions unless another is asked for."""
    template = Template(
        fdm=("<bos>", "{source}", "{action}", PRAISE, "{header}"),
        fdm_free=("<bos>", "{source}", BLAME, "{header}"),
        idm=(
            *("<bos>", "You are a helpful assistant. USER: ", "{source}", "{target}"),
            *("Name the action that leads from the first image to the second", ". ASSISTANT:"),
        ),
    )

    def __init__(
        self,
        model: Emu3ForConditionalGeneration,
        vqmodel: Emu3VQVAE,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        layout: TokenLayout,
        picture_size: PictureSize,
        known_words: Sequence[str] | None = None,
    ) -> None:
        self.model = self._emu = model  # `_emu` stays the transformers model when peft wraps `self.model`
        self.vqmodel = vqmodel.float().eval().requires_grad_(False)
        del model.model.vqmodel
        self.tokenizer, self.name, self.layout, self.picture_size = tokenizer, name, layout, picture_size
        self.cell = self.unit = cell_of(self.vqmodel.config)
        self.known_words = frozenset(known_words) if known_words is not None else None

    def transformer(self) -> nn.Module:
        return self._emu.model.text_model  # type: ignore[no-any-return]

    def _head(self) -> Tensor:
        return self._emu.lm_head.weight  # type: ignore[no-any-return]

    def features_pixels(self, images_BHWC: Tensor) -> Tensor:
        vq = self.vqmodel.to(self.device)
        at_once = _at_once(images_BHWC.shape[1] * images_BHWC.shape[2])
        parts = [latents_of_stills(vq, to_pixels(part)) for part in images_BHWC.split(at_once)]
        return torch.cat(parts).flatten(2).transpose(1, 2)

    def quantise(self, features_BKD: Tensor) -> Tensor:
        at_once = _at_once(features_BKD.shape[1] * self.cell**2)
        parts = features_BKD.transpose(1, 2)[:, None, :, :, None].split(at_once)
        codes = torch.cat([self.vqmodel.quantize(part) for part in parts]).flatten(1)
        return self.layout.image_ids_V.to(codes.device)[codes]

    def decode_ids(self, ids_BK: Tensor, grid: Grid) -> Tensor:
        vq = self.vqmodel.to(self.device)
        codes = codes_of(ids_BK, self.layout.image_ids_V).unflatten(1, (grid.rows, grid.columns))
        at_once = _at_once(grid.codes * self.cell**2)
        return torch.cat([to_uint8(pixels_of_stills(vq, part)) for part in codes.split(at_once)])

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        return self.vqmodel.quantize.embedding.weight.float()  # type: ignore[no-any-return]

    def bin_tokens(self) -> BinTokens:
        """As UniVLA's code has them: the words before the last one, backwards, between two markers."""
        vocabulary = self._emu.config.vocabulary_map
        last = max(number for number in self.layout.text_ids_V.tolist() if number != self.layout.end_text)
        ids = tuple(range(last - 1, last - 1 - NUM_BINS, -1))
        return BinTokens(ids, (vocabulary[BEGIN_ACTION],), (vocabulary[END_ACTION],))

    def fast_tokens(self, size: int) -> BinTokens:
        """As UniVLA's code has them: token t of the codec is the t-th word from the last one backwards."""
        bins = self.bin_tokens()
        last = bins.ids[0] + 1
        return BinTokens(tuple(range(last, last - size, -1)), bins.begin, bins.end)

    def save(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        inner = self._emu.model
        inner.vqmodel = self.vqmodel
        try:
            with quiet_transformers():
                self._emu.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)
        finally:
            del inner.vqmodel
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def recognises(cls, config: dict[str, Any]) -> bool:
        """Whether a checkpoint's `config.json` is this family's."""
        if config.get("model_type") == original.MODEL_TYPE:  # Emu3.5's too, which is another model
            return config.get("vocab_size") == original.VOCABULARY and not original.for_robots(config)
        return config.get("model_type") == "emu3" and bool(config.get("vocabulary_map"))

    @classmethod
    def usual_size(cls, config: Emu3Config) -> int:
        """The side of a picture in pixels where none is asked for."""
        codes = config.text_config.max_position_embeddings / 2
        fitting = [size for size in cls.usual_sizes if (size // cell_of(config.vq_config) + 1) ** 2 < codes]
        return fitting[0] if fitting else cls.usual_sizes[0]

    @staticmethod
    def picture_grammar(vocabulary: Mapping[str, int], grid: Grid) -> PictureGrammar:
        """What stands around and between the codes of a picture."""
        header = (BEGIN_IMAGE, *f"{grid.rows}*{grid.columns}", IMAGE_TOKEN)
        trailer = (vocabulary[FRAME_END], vocabulary[END_IMAGE])
        return PictureGrammar(grid, tuple(vocabulary[token] for token in header), trailer, vocabulary[ROW_END])

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        known_words: Sequence[str] | None,
        settings: Settings | None = None,
        vq_folder: Path | None = None,
    ) -> Emu3VLM:
        """Open a checkpoint folder of transformers' Emu3 classes, or of Emu3's own code with its VQ tokenizer beside.

        The text model's `attention_dropout` is set to 0: 0.1 in the published config, it acts on every residual branch
        and is not among the dropout modules that trainers switch off, so that the loss would see another policy than
        the sampler. Adapters have a dropout of their own.

        Raises:
            RewindError: weights that do not fit, no VQ tokenizer, a picture size that the family cannot take.
        """
        settings = settings or Settings()
        found = original.renamed_vq(vq_weights(folder, vq_folder, "BAAI/Emu3-VisionTokenizer"))
        arguments = settings.arguments()
        if read_json(folder / "config.json").get("model_type") == original.MODEL_TYPE:
            tokenizer = original.open_tokenizer(folder)
            config = original.config_of(folder, original.vq_config_in(found.where), tokenizer.get_vocab())
            arguments["key_mapping"] = original.KEYS
        else:
            config = Emu3Config.from_pretrained(folder, local_files_only=True)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        config.text_config.attention_dropout = 0.0
        size = settings.picture_size or PictureSize.of(cls.usual_size(config))
        layout = _layout(config, tokenizer, name, size, cls.picture_grammar)
        vqmodel = Emu3VQVAE(config.vq_config)
        decoder = {f"decoder.{key}": value for key, value in found.decoder.items()}
        put(vqmodel, found.encoder | decoder, f"the VQ tokenizer in {found.where}")
        with quiet_transformers():
            model, report = Emu3ForConditionalGeneration.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **arguments,
            )
        wrong = {key_of(key) for kind in report if kind.endswith("_keys") for key in report[kind]}
        if wrong := {key for key in wrong if "vqmodel." not in key}:
            raise RewindError(
                f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
                f"of another shape, e.g. '{min(wrong)}'"
            )
        return cls(model.eval(), vqmodel, tokenizer, name, layout, size, known_words)


def _at_once(pixels: int) -> int:
    """Pictures of so many pixels that the VQ tokenizer takes at once."""
    return max(1, PIXELS_AT_ONCE // pixels)


def _layout(
    config: Emu3Config,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    size: PictureSize,
    grammar_of: Callable[[Mapping[str, int], Grid], PictureGrammar] = Emu3VLM.picture_grammar,
) -> TokenLayout:
    vocabulary: dict[str, int] = config.vocabulary_map
    if missing := [token for token in _MARKERS if token not in vocabulary]:
        raise RewindError(f"the vocabulary map of {name} lacks {', '.join(missing)}: this is no Emu3 checkpoint")
    ids_by_code = {int(found[1]): i for word, i in vocabulary.items() if (found := CODE_NAME.fullmatch(word))}
    if sorted(ids_by_code) != list(range(config.vq_config.codebook_size)):
        raise RewindError(
            f"the vocabulary map of {name} names {len(ids_by_code)} image codes, and the VQ tokenizer has "
            f"{config.vq_config.codebook_size}"
        )
    cell, most = cell_of(config.vq_config), config.text_config.max_position_embeddings
    size.check(name, cell, most * cell)  # the area is bounded by the positions alone
    grid, markers = Grid(size.height // cell, size.width // cell), {token: vocabulary[token] for token in _MARKERS}
    grammar = replace(grammar_of(markers, grid), header_of=partial(_header, grammar_of, markers))
    tallest = size.longest // cell if size.own else grid.rows  # which has the most ends of rows
    tokens = 2 * len(grammar.of(Grid(tallest, grid.codes // tallest)).picture(range(grid.codes // tallest * tallest)))
    if tokens > most:
        raise RewindError(
            f"{name} takes pictures of which two fit into {most} positions, not {size.written} ({tokens} tokens)"
        )
    words = [i for word, i in vocabulary.items() if not NO_WORD.fullmatch(word)]
    return TokenLayout(
        image_ids_V=torch.tensor([ids_by_code[code] for code in range(len(ids_by_code))]),
        text_ids_V=torch.tensor(sorted({*words, tokenizer.eos_token_id})),
        grammar=grammar,
        begin_text=tokenizer.bos_token_id,
        end_text=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )


def _header(
    grammar_of: Callable[[Mapping[str, int], Grid], PictureGrammar], markers: Mapping[str, int], grid: Grid
) -> tuple[int, ...]:
    """The begin of a picture, its size in digits, and the image token."""
    return grammar_of(markers, grid).header
