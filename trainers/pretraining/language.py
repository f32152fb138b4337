"""The second stage of a base: next-token prediction over words and image tokens.

Six kinds of sequences, none of which connects a pair of pictures with an action: a picture and its caption; a caption
and its picture; two pictures and words about both; words about both and then the two pictures; two pictures; words
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer

from rl.data.pools import PretrainingPool
from rl.errors import RewindError
from rl.models.unified import UnifiedVLM
from trainers.common.checkpoints import WholeCheckpoints, fit
from trainers.common.log_probs import IGNORED
from trainers.common.metrics import MetricsFile
from trainers.pretraining.settings import training_arguments

MIXTURE = {"describe": 0.25, "draw": 0.1, "compare": 0.3, "illustrate": 0.1, "continue": 0.15, "text": 0.1}
"""Usual share of each kind of sequence; a kind for which a pool has nothing leaves its share to the others."""


def parse_mixture(specs: Sequence[str] | None) -> dict[str, float]:
    """`["compare=0.5", "text=0.1"]` -> shares; kinds that are not named get none. Nothing given: `MIXTURE`.

    Raises:
        RewindError: an unknown kind, a share that is no positive number.
    """
    if not specs:
        return dict(MIXTURE)
    found = {}
    for spec in specs:
        kind, _, share = spec.partition("=")
        try:
            found[kind] = float(share)
        except ValueError:
            found[kind] = -1.0
        if kind not in MIXTURE or not 0 < found[kind] < float("inf"):
            raise RewindError(
                f"--mixture takes KIND=SHARE with a share above 0 and KIND of {', '.join(MIXTURE)}: {spec}"
            )
    return found


class Sequences(Dataset):  # type: ignore[type-arg]
    """Sequences drawn from a pool: item i is a function of (seed, i) alone, so that training can be resumed.

    Loss is taken on words and on pictures that something stands before; the first picture of a sequence is given.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        pool: PretrainingPool,
        ids_NK: Tensor,
        length: int,
        seed: int,
        mixture: Mapping[str, float] = MIXTURE,
    ) -> None:
        self.vlm, self.pool, self.ids, self.length, self.seed = vlm, pool, ids_NK.tolist(), length, seed
        self.captioned = [i for i, words in enumerate(pool.captions) if words]
        self.compared = [p for p, words in enumerate(pool.pair_captions) if words]
        has: dict[str, Any] = {
            "describe": self.captioned,
            "draw": self.captioned,
            "compare": self.compared,
            "illustrate": self.compared,
            "continue": pool.pairs_P2,
            "text": pool.texts,
        }
        self.kinds = [kind for kind in MIXTURE if len(has[kind]) and mixture.get(kind)]
        self.alone = not self.kinds  # pictures only: learn them by themselves
        shares = np.array([mixture[kind] for kind in self.kinds])
        self.shares = shares / shares.sum() if len(shares) else shares
        self._tokens: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        rng = np.random.default_rng((self.seed, index))
        given, learned = self._sequence(rng)
        return {"input_ids": given + learned, "labels": [IGNORED] * len(given) + learned}

    def _sequence(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        layout, span = self.vlm.layout, self.vlm.image_span
        begin, end = [layout.begin_text], [layout.end_text]
        if self.alone:
            return begin, span(self.ids[int(rng.integers(len(self.ids)))])
        kind = self.kinds[int(rng.choice(len(self.kinds), p=self.shares))]
        if kind == "text":
            return begin, self._words(self.pool.texts, rng) + end
        if kind in ("describe", "draw"):
            image = self.captioned[int(rng.integers(len(self.captioned)))]
            words = self._words(self.pool.captions[image], rng)
            if kind == "describe":
                return begin + span(self.ids[image]), words + end
            return begin + words, span(self.ids[image])
        pairs = range(len(self.pool.pairs_P2)) if kind == "continue" else self.compared
        pair = pairs[int(rng.integers(len(pairs)))]
        first, second = (span(self.ids[image]) for image in self.pool.pairs_P2[pair])
        if kind == "continue":
            return begin + first, second
        words = self._words(self.pool.pair_captions[pair], rng)
        if kind == "illustrate":
            return begin + words + first, second
        return begin + first + second, words + end

    def _words(self, options: list[str], rng: np.random.Generator) -> list[int]:
        text = options[int(rng.integers(len(options)))]
        if text not in self._tokens:
            self._tokens[text] = self.vlm.text_ids(text)
        return self._tokens[text]


class Collator:
    """Pads on the right."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad, "labels": IGNORED}
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
            for key, value in fill.items()
        }


class LanguageTrainer(WholeCheckpoints, Trainer):
    """`Trainer` with a loss that keeps the image logits which transformers' Chameleon forward erases.

    Pretraining uses the softmax over the whole vocabulary: here the model also has to learn which kind of token
    comes next. Sampling and scoring later restrict it (`rl.models.distribution`).
    """

    def __init__(self, *args: Any, vlm: UnifiedVLM, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vlm = vlm

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Short and long rows by themselves: half the rows then carry half the padding.
        order = (inputs["labels"] != IGNORED).cumsum(1).argmax(1).argsort()
        states, targets = [], []
        for rows in order.chunk(2) if len(order) > 1 else [order]:
            labels = inputs["labels"][rows]
            width = int((labels != IGNORED).any(0).nonzero().max()) + 1
            hidden = self.vlm.hidden_states(inputs["input_ids"][rows, :width], use_cache=False).last_hidden_state
            learned = labels[:, 1:width] != IGNORED
            states.append(hidden[:, :-1][learned])
            targets.append(labels[:, 1:width][learned])
        logits = torch.nn.functional.linear(torch.cat(states), self.vlm.head_weight())
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.cat(targets))
        return (loss, {}) if return_outputs else loss


def train_language(
    vlm: UnifiedVLM,
    pool: PretrainingPool,
    output: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    resume: bool,
    mixture: Mapping[str, float] = MIXTURE,
) -> None:
    """Train the backbone on a pool, its VQ tokenizer frozen; the model is changed in place, logs go to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    ids_NK = vlm.encode(list(pool.images_NHWC))
    arguments = training_arguments(
        output, steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=min(200, steps // 10), seed=seed
    )
    trainer = LanguageTrainer(
        model=vlm.model,
        args=arguments,
        train_dataset=Sequences(vlm, pool, ids_NK, steps * batch_size, seed, mixture),
        data_collator=Collator(vlm.layout.pad),
        callbacks=[MetricsFile(output / "metrics.jsonl")],
        vlm=vlm,
    )
    fit(trainer, output, resume, "--batch_size")
    vlm.model.eval()
