"""The nouns that data and models exchange: `Triplet`, `Candidate`, `Scored`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rl.actions import action_text
from rl.codes import Codes, Grid
from rl.errors import RewindError
from rl.pictures import Picture, Views, from_path, views_of

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM


@dataclass(frozen=True)
class Triplet:
    """A source picture, an action in words and the picture after it, with where they come from.

    An action may be a vector of numbers (list, tuple or array), which is kept as its text, `[0.1, -0.25]`
    (`rl.actions`).
    `target` is None where it is unknown; `task` is the data set's task name, `label` a class label, `score` a
    log-likelihood given by whoever labelled it, `provenance` a word such as 'human' or 'idm'. `more` are further
    columns of the data by name, such as a mask, as JSON values: rewards may ask for them. The path of a picture stands
    for the picture, which then stays in its file until it is looked at (`rl.pictures.PictureFile`).

    Raises:
        RewindError: a path that leads to no whole picture, or a target of other views than the source.
    """

    source: Picture
    action: str
    target: Picture | None = None
    task: str | None = None
    label: str | None = None
    score: float | None = None
    provenance: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)  # equal triplets have equal columns

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", from_path(self.source))
        object.__setattr__(self, "target", from_path(self.target))
        object.__setattr__(self, "action", action_text(self.action))
        if self.target is not None and not isinstance(self.source, Candidate):
            before, after = views_of(self.source), views_of(self.target)
            if before != after:
                raise RewindError(f"the source has {before} views and the target {after}: a scene keeps its cameras")


def columns_of(triplets: Iterable[Triplet]) -> list[str]:
    """Names of the further columns, those that any triplet has; a table of triplets knows them."""
    known = getattr(triplets, "columns", None)
    if known is not None:
        return list(known)
    return list(dict.fromkeys(name for triplet in triplets for name in triplet.more))


@dataclass(frozen=True, eq=False)
class Candidate:
    """One predicted target.

    `ids` int64 [K] are image tokens of the vocabulary, `logprobs` float32 [K] their log-probabilities under the
    distribution that they were drawn from (natural logarithm; 0 at temperature 0). `backbone` is the model whose
    vocabulary the ids belong to: another one reads `image`, which is decoded when first read. A pickle leaves the model
    out; `dataclasses.replace(candidate, backbone=...)` gives one back. `grid` says how the ids lie in the picture; None
    is the backbone's usual one.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    backbone: UnifiedVLM = field(repr=False)
    grid: Grid | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Candidate, (self.ids, self.logprobs, None, self.grid)

    def __copy__(self) -> Candidate:
        return Candidate(self.ids, self.logprobs, self.backbone, self.grid)

    def __deepcopy__(self, _: Any) -> Candidate:
        return Candidate(self.ids.copy(), self.logprobs.copy(), self.backbone, self.grid)

    @property
    def codes(self) -> Codes:
        """The ids with their grid."""
        return Codes(self.ids.tolist(), self.grid or self.backbone.layout.grammar.grid)

    @cached_property
    def image(self) -> Image.Image:
        """The picture.

        Raises:
            RewindError: the candidate comes from a pickle, which holds no model.
        """
        if self.backbone is None:
            raise RewindError(
                "this candidate comes from a pickle, which leaves its model out, so it cannot be decoded: "
                "use dataclasses.replace(candidate, backbone=fdm.backbone)"
            )
        return Image.fromarray(self.backbone.decode(self.ids[None], grid=self.grid)[0])

    @property
    def picture(self) -> Picture:
        """The picture for another model: of several views each by itself."""
        several = self.grid is not None and self.grid.views > 1
        return Views.of_stack(np.asarray(self.image), self.grid.views) if several and self.grid else self.image

    @property
    def logprob(self) -> float:
        """Log-probability of the whole picture."""
        return float(self.logprobs.sum())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """`np.asarray(candidate)` is its picture, uint8 [H, W, 3]: a candidate can be a source (`rollout`)."""
        return np.array(self.image, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with a named score for each reward and their weighted total; None where it cannot be scored."""

    candidate: Candidate
    scores: dict[str, float | None]
    total: float | None

    @property
    def image(self) -> Image.Image:
        """The candidate's picture."""
        return self.candidate.image

    @property
    def score(self) -> float | None:
        """The weighted total."""
        return self.total
