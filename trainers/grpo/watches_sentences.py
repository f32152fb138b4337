"""What to watch while a reward trains an inverse model: signs of sentences that only the rewarding model understands.

Words become a private code where both models agree on what no reader would: sentences grow longer (16.8 tokens for 7.2
in SWIRL's data), alike for all pairs, or drift from what the start said, while the reward rises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rl.models.roles import POLICY_ADAPTER, InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture, Views, pixels, views_of
from rl.running.files import read_json, write_whole
from rl.sentences import Sentence
from rl.triplets import Scored, Triplet
from rl.words import words_of
from trainers.common.sharding import on_main
from trainers.grpo.monitors import Rule

PAIRS = 32
"""Pairs that the policy names greedily at every measurement, to be compared with what the start said of them."""
JUDGED = 64
"""At most so many sentences of a rollout are judged."""
SENTENCE_RULES = {
    "distinct": Rule(0.3, 0.6, -1),
    "entropy": Rule(0.4, 0.8),
    "length": Rule(3.0, 8.0),
    "words": Rule(2.0, 6.0),
    "as_start": Rule(0.4, 0.8, -1),
    "empty": Rule(0.05, 0.2, +1),
    "cut_off": Rule(0.05, 0.2, +1),
    "judge_idm": Rule(0.5, 1.5, -1),
}
"""Every monitor of sentences with its usual rule; what each measures stands in `WatchesSentences.measure`."""


class WatchesSentences:
    """Measures sentences (`trainers.grpo.monitors.Watches`).

    Args:
        pairs: all that is trained on; `PAIRS` of them, evenly chosen, are named at the start and at every measurement.
        start_file: where those first names are kept, so that a resumed run compares with the same.

    Attributes:
        vlm: the policy's backbone; the trainer gives it.
    """

    vlm: UnifiedVLM

    def __init__(self, pairs: Sequence[Triplet], start_file: Path | None = None) -> None:
        chosen = np.unique(np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).astype(int))
        self.pairs, self.start_file = [pairs[n] for n in chosen], start_file
        self.start: list[str] | None = None

    def measure(
        self, rows: Sequence[Triplet], scored: Sequence[Scored], group: int, judge: InverseDynamics | None
    ) -> dict[str, float]:
        """What a rollout's sentences are like.

        Returns:
            `distinct`, share of different sentences in a group; `entropy`, mean of minus the log-probability of the
            drawn tokens (nats a token); `length`, tokens a sentence, its end included; `words`, words a sentence;
            `as_start`, share of the watched pairs of which the policy says, greedily, what the start said; `empty`,
            share without a word; `cut_off`, share that did not end; with a judge `judge_idm`, mean log-probability a
            token that it gives to the sentences, of true pictures.
        """
        sentences: list[Any] = [one.candidate for one in scored]
        starts = range(0, len(sentences), group)
        distinct = [len({s.text for s in sentences[start : start + group]}) for start in starts]
        found = {
            "distinct": sum(distinct) / len(sentences),
            "entropy": -float(np.mean([s.logprobs.mean() for s in sentences])),
            "length": float(np.mean([len(s.ids) for s in sentences])),
            "words": float(np.mean([len(words_of(s.text)) for s in sentences])),
            "as_start": self._as_start(),
            "empty": float(np.mean([not s.text.strip() for s in sentences])),
            "cut_off": float(np.mean([not s.ended for s in sentences])),
        }
        if judge is not None:
            found["judge_idm"] = _judged(judge, rows, sentences)
        return found

    def _as_start(self) -> float:
        """Share of the watched pairs that have the start's name; each process names its own part of them."""
        state = PartialState()
        mine = range(state.process_index, len(self.pairs), state.num_processes)
        if self.start is None:
            self.start = self._first()
        if not len(mine):  # more processes than pairs
            mine = range(1)
        said = self._named([self.pairs[n] for n in mine])
        return float(np.mean([words_of(a) == words_of(self.start[n]) for n, a in zip(mine, said, strict=True)]))

    def _first(self) -> list[str]:
        """What the start said: of an earlier run in the same folder, or said now, and then kept."""
        file = self.start_file
        if file is not None and on_main(file.is_file):
            return [str(text) for text in on_main(lambda: read_json(file)["sentences"])]
        said = self._named(self.pairs)
        if file is not None:
            on_main(lambda: write_whole(file, json.dumps({"sentences": said}, indent=1) + "\n"))
        return said

    def _named(self, pairs: Sequence[Triplet]) -> list[str]:
        targets = [pair.target for pair in pairs if pair.target is not None]
        return InverseDynamics(self.vlm, POLICY_ADAPTER).describe([pair.source for pair in pairs], targets)

    def write(self, file: Path, rows: Sequence[Triplet], scored: Sequence[Scored]) -> None:
        """Write what `measure` reads of rows and their sentences: no scores."""
        pictures: dict[int, Any] = {id(picture): picture for row in rows for picture in (row.source, row.target)}
        place = {key: number for number, key in enumerate(pictures)}
        tensors = {f"picture-{place[key]}": np.ascontiguousarray(pixels(x)) for key, x in pictures.items()}
        tensors["views"] = np.array([views_of(x) for x in pictures.values()])
        tensors["pictures_of_row"] = np.array([(place[id(row.source)], place[id(row.target)]) for row in rows])
        sentences: list[Any] = [one.candidate for one in scored]
        for name in ("ids", "logprobs"):
            tensors[name] = np.concatenate([getattr(s, name) for s in sentences])
        tensors["lengths"] = np.array([len(s.ids) for s in sentences])
        tensors["ended"] = np.array([s.ended for s in sentences])
        told = {"actions": [row.action for row in rows], "texts": [s.text for s in sentences]}
        save_file(tensors, file, metadata={"told": json.dumps(told)})

    def read(self, file: Path) -> tuple[list[Triplet], list[Scored]]:
        """The rows and sentences that `write` wrote."""
        tensors = load_file(file)
        with safe_open(file, framework="numpy") as opened:
            told = json.loads(opened.metadata()["told"])
        views = tensors["views"].tolist()
        pictures = [_picture(tensors[f"picture-{n}"], count) for n, count in enumerate(views)]
        pairs = tensors["pictures_of_row"].tolist()
        rows = [
            Triplet(pictures[a], action, pictures[b]) for (a, b), action in zip(pairs, told["actions"], strict=True)
        ]
        cuts = np.cumsum(tensors["lengths"])[:-1]
        ids, logprobs = np.split(tensors["ids"], cuts), np.split(tensors["logprobs"], cuts)
        said = zip(ids, logprobs, told["texts"], tensors["ended"].tolist(), strict=True)
        sentences: list[Any] = [Sentence(*one) for one in said]
        return rows, [Scored(sentence, {}, None) for sentence in sentences]


def _judged(judge: InverseDynamics, rows: Sequence[Triplet], sentences: Sequence[Sentence]) -> float:
    """Mean log-probability a token of evenly chosen sentences under a judge; 0 where none says anything."""
    even = np.unique(np.linspace(0, len(rows) - 1, min(JUDGED, len(rows))).astype(int))
    shown = [n for n in even.tolist() if sentences[n].text.strip()]
    if not shown:
        return 0.0
    targets = [target for n in shown if (target := rows[n].target) is not None]
    return float(np.mean(judge.score([rows[n].source for n in shown], targets, [sentences[n].text for n in shown])))


def _picture(array: np.ndarray, views: int) -> Picture:
    return array if views == 1 else Views.of_stack(array, views)
