"""Making a base from scratch, stage by stage: pool, VQ tokenizer, text tokenizer, language model, base folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rl.data.frames import pool_from_frames, read_captions, read_texts
from rl.data.pools import PretrainingPool, pool_from_world
from rl.errors import RewindError
from rl.models.families.chameleon import TINY_DECODER, new_chameleon, tiny_vq_config
from rl.models.families.liquid_small import new_liquid
from rl.models.families.vqgan import VQGANBackbone
from rl.models.opening import load_base
from rl.models.saving import save_base
from rl.models.text_tokenizer import CHAMELEON, GEMMA, SPECIAL_TOKENS, train_text_tokenizer
from rl.models.unified import UnifiedVLM
from rl.running.command_line import plain
from rl.running.run_folder import claim
from rl.words import words_of
from rl.worlds import load_split
from trainers.pretraining.language import parse_mixture, train_language
from trainers.pretraining.settings import require_one_process
from trainers.pretraining.vq_model import VQTrainingModel
from trainers.pretraining.vq_stage import train_tokenizer

logger = logging.getLogger("rl")
TOKENIZER_FILE = "tokenizer.safetensors"
NEW = {"chameleon": (new_chameleon, CHAMELEON), "liquid": (new_liquid, GEMMA)}
"""Family -> what makes a model with random weights, and the markers of its text tokenizer."""


def make_base(arguments: argparse.Namespace) -> Path:
    """Run the stages of `scripts/pretrain_base.py`; each finished stage is kept and skipped on resumption."""
    a = arguments
    if (a.world is None) == (a.frames is None):
        raise RewindError("give either --world or --frames")
    mixture = parse_mixture(a.mixture)
    if a.base is not None and a.tokenizer_from is not None:
        raise RewindError("--base brings its tokenizer: leave out --tokenizer_from")
    world = load_split(a.world, "train") if a.world is not None else None
    base = load_base(a.base) if a.base is not None else None
    if base is not None and a.family not in (None, base.family):
        raise RewindError(f"--family {a.family}: {a.base} is of the family {base.family}, which it keeps")
    a.family = a.family or (base.family if base is not None else "chameleon")
    image_size = world.image_size if world is not None else base.image_size if base is not None else a.image_size
    if base is not None and base.image_size != image_size:
        raise RewindError(f"{a.base} sees {base.image_size} pixels and the world {a.world} draws {image_size}")
    if not isinstance(image_size, int) or image_size % 16 or image_size < 32:
        raise RewindError(f"the image size must be a multiple of 16 and at least 32 (square), not {image_size}")
    smallest = 256 + len(SPECIAL_TOKENS)
    if a.text_vocabulary < smallest:
        raise RewindError(f"--text_vocabulary must be at least {smallest} (bytes and markers), not {a.text_vocabulary}")
    if a.hidden_size % (2 * a.num_heads):
        raise RewindError(f"--hidden_size {a.hidden_size} must be a multiple of twice --num_heads {a.num_heads}")
    if a.tokenizer_steps < 1 and a.tokenizer_from is None and base is None:
        raise RewindError("--tokenizer_steps 0 needs --tokenizer_from: there is no tokenizer to use")
    if a.tokenizer_from is not None and not _is_run(a.tokenizer_from):
        _check_taken_over(a, image_size)
    require_one_process("pretrain_base.py")
    if world is not None:
        pool = pool_from_world(world, a.num_pairs, a.num_videos, np.random.default_rng(a.seed))
    else:
        captions = read_captions(a.captions) if a.captions else None
        pool = pool_from_frames(a.frames, image_size, a.max_frames, captions, read_texts(a.text or []))
    config = plain(vars(a))
    inputs = [*(a.frames or ()), *(a.text or ()), a.captions, a.tokenizer_from, a.base]
    output = claim(a.output, "pretrain_base.py", config, inputs=inputs, resume=a.resume, overwrite=a.overwrite)
    logger.warning(
        "%d pictures, %d with words, %d pairs, %d sentences",
        *(len(pool.images_NHWC), sum(map(bool, pool.captions)), len(pool.pairs_P2), len(pool.texts)),
    )
    if base is not None:
        vlm: UnifiedVLM = base
        if vlm.known_words is not None:
            vlm.known_words |= {word for text in pool.all_text() for word in words_of(text)}
    else:
        vlm = _with_tokenizer(a, pool, image_size, output)
    torch.manual_seed(a.seed)
    train_language(
        vlm,
        pool,
        output / "training" / "language",
        steps=a.steps,
        batch_size=a.batch_size,
        learning_rate=a.learning_rate,
        seed=a.seed,
        resume=a.resume,
        mixture=mixture,
    )
    save_base(vlm, output, {"pretraining": config})
    logger.warning("the base is in %s", output)
    return output


def _with_tokenizer(a: argparse.Namespace, pool: PretrainingPool, image_size: int, output: Path) -> UnifiedVLM:
    """A backbone with random language weights around a trained (or already finished) VQ tokenizer."""
    finished = output / "training" / TOKENIZER_FILE
    finished.parent.mkdir(exist_ok=True)
    if not finished.is_file():
        _save_whole(_train_tokenizer(a, pool, image_size, output), finished)
    weights = load_file(finished)
    # Fewer codes than --num_codes if some were merged.
    vq_config = tiny_vq_config(image_size, len(weights["vqmodel.quantize.embedding.weight"]))
    vq = VQTrainingModel(vq_config, TINY_DECODER)
    vq.load_state_dict(weights)
    texts = pool.all_text()
    torch.manual_seed(a.seed)
    new, markers = NEW[a.family]
    vlm = new(
        train_text_tokenizer(texts, a.text_vocabulary, markers),
        vq_config,
        TINY_DECODER,
        hidden_size=a.hidden_size,
        num_layers=a.num_layers,
        num_heads=a.num_heads,
        name=str(output),
        known_words=sorted({word for text in texts for word in words_of(text)}),
    )
    vlm.load_vq(vq.vqmodel.state_dict(), vq.decoder.state_dict())
    return vlm


def _train_tokenizer(a: argparse.Namespace, pool: PretrainingPool, image_size: int, output: Path) -> VQTrainingModel:
    """The first stage: a VQ tokenizer from random weights or from another run's."""
    torch.manual_seed(a.seed)
    if a.tokenizer_from is not None and not _is_run(a.tokenizer_from):
        return _tokenizer_of_base(load_base(a.tokenizer_from), image_size)
    warmup = min(a.tokenizer_warmup, a.tokenizer_steps // 2)
    vq = VQTrainingModel(tiny_vq_config(image_size, a.num_codes), TINY_DECODER, warmup=warmup, seed=a.seed)
    if a.tokenizer_from is not None:
        vq.load_state_dict(_tokenizer_weights(a.tokenizer_from, vq))
    if a.tokenizer_steps:
        train_tokenizer(
            vq,
            pool.images_NHWC,
            output / "training" / "tokenizer",
            steps=a.tokenizer_steps,
            batch_size=a.tokenizer_batch_size,
            learning_rate=a.tokenizer_learning_rate,
            seed=a.seed,
            resume=a.resume,
        )
    if a.merge_codes > 0:
        vq.merge_codes(a.merge_codes)
        logger.warning("%d of %d codes are left after merging", len(vq.usage_V), a.num_codes)
    return vq


def _is_run(tokenizer_from: Path) -> bool:
    """Whether it is a run of the script with a finished tokenizer stage, and no base that brings its own."""
    return (tokenizer_from / "training" / TOKENIZER_FILE).is_file()


def _check_taken_over(a: argparse.Namespace, image_size: int) -> None:
    """Whether a base's tokenizer can be taken as it is.

    Raises:
        RewindError: no such base, steps or merging that it lacks the state for, another picture size.
    """
    file = a.tokenizer_from / "training" / TOKENIZER_FILE
    try:
        base = load_base(a.tokenizer_from)
    except RewindError as error:
        raise RewindError(
            f"--tokenizer_from: there is no {file}, and no base either ({error}): give the output folder of a finished "
            "tokenizer stage, or a base"
        ) from error
    if a.tokenizer_steps or a.merge_codes:
        raise RewindError(
            f"--tokenizer_from {a.tokenizer_from} is a base, whose tokenizer is taken as it is: --tokenizer_steps 0 "
            "--merge_codes 0"
        )
    if base.image_size != image_size:
        raise RewindError(f"--tokenizer_from {a.tokenizer_from} sees {base.image_size} pixels, not {image_size}")
    _tokenizer_of_base(base, image_size)


def _tokenizer_of_base(base: UnifiedVLM, image_size: int) -> VQTrainingModel:
    """The tokenizer of a base, as the first stage leaves one."""
    if not isinstance(base, VQGANBackbone) or base.decoder is None:
        raise RewindError(f"--tokenizer_from: {base.name} has no VQGAN with a decoder")
    vq = VQTrainingModel(tiny_vq_config(image_size, len(base.vqmodel.quantize.embedding.weight)), TINY_DECODER)
    try:
        vq.vqmodel.load_state_dict(base.vqmodel.state_dict())
        vq.decoder.load_state_dict(base.decoder.state_dict())
    except RuntimeError as error:
        raise RewindError(
            f"--tokenizer_from: the VQ tokenizer of {base.name} is no small one of this script"
        ) from error
    return vq


def _tokenizer_weights(run: Path, vq: VQTrainingModel) -> dict[str, torch.Tensor]:
    """The weights that another run of the script left, checked against this one's sizes."""
    file = run / "training" / TOKENIZER_FILE
    weights = load_file(file)
    expected = {key: value.shape for key, value in vq.state_dict().items()}
    if {key: value.shape for key, value in weights.items()} != expected:
        codes = len(weights.get("vqmodel.quantize.embedding.weight", ()))
        raise RewindError(
            f"--tokenizer_from: {file} has other sizes: use its --image_size, and --num_codes {codes}, what it has left"
        )
    return weights


def _save_whole(vq: VQTrainingModel, file: Path) -> None:
    """Write a module's weights beside `file` and move them into place, so that a file that is there is complete."""
    beside = file.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in vq.state_dict().items()}, beside)
    beside.replace(file)
