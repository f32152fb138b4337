"""What rewards of the inverse role may ask for: sentences about two true pictures, one entry a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from rewards.contract import Batch
from rewards.signature import SENTENCES, Table


@dataclass
class SentenceBatch(Batch):
    """Sentences (`rl.sentences.Sentence`) in the place of predicted pictures: `completions` are their texts.

    `prompts` are empty texts, since the pictures are what was asked; `target_image` is the true one, and
    `changed_tokens` is where it shows something else than the source. `true_action` are the data's own words, None
    where a pair has none. `vlm` is the backbone whose ids `source_ids` and `target_ids` are.
    """

    table: ClassVar[Table] = SENTENCES
    true_action: Sequence[str | None] | None = None
    vlm: Any = None

    def told(self, number: int) -> str:
        """A sentence, for messages."""
        return self.completions[number]

    def column(self, name: str) -> Any:
        """A column by its name, a further one too."""
        return getattr(self, name) if name in self.table.columns else [row.get(name) for row in self.more or ()]

    @cached_property
    def completions(self) -> list[str]:
        """What was said."""
        return [sentence.text for sentence in self.candidates]  # type: ignore[attr-defined]

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """The tokens of what was said, the end of the text among them."""
        return [sentence.ids.tolist() for sentence in self.candidates]

    @cached_property
    def source_ids(self) -> Sequence[list[int]]:
        """Image-token ids of the sources; each picture is encoded once."""
        from rl.models.inputs import token_ids

        return token_ids(self.vlm, self.source_image)

    @cached_property
    def target_ids(self) -> Sequence[list[int]]:
        """Image-token ids of the true targets, in their sources' sizes."""
        from rl.models.inputs import token_ids

        assert self.target_image is not None
        return token_ids(self.vlm, [x for x in self.target_image if x is not None], self.source_ids)

    @cached_property
    def changed_tokens(self) -> list[np.ndarray]:
        """Which tokens of each true target show something else than its source's, bool [K]."""
        return [self.vlm.changed(a, b) for a, b in zip(self.target_ids, self.source_ids, strict=True)]

    def only(self, number: int) -> SentenceBatch:
        """One sentence as a batch of its own, which logs nothing."""
        one = slice(number, number + 1)
        alone = super().only(number)
        true = None if self.true_action is None else self.true_action[one]
        return SentenceBatch(**vars_of(alone), true_action=true, vlm=self.vlm)


def vars_of(batch: Batch) -> dict[str, Any]:
    """The fields of a batch of pictures, without what it has made of them."""
    names = ("prompts", "candidates", "source_image", "target_image", "task", "log_metric", "trainer_state", "more")
    return {name: getattr(batch, name) for name in names}
