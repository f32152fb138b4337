"""The reward contract: what a reward function may ask for, how it is called, and what its answer must look like.

A reward is any callable with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`. Here
`prompts` are action texts and `completions` predicted pictures (PIL). It receives the parameters that it names, so
`def bright(completions, **_)` has pictures decoded and `def f(predicted_ids, source_ids, **_)` does not; further
columns of the data come by name, too (`rewards.signature`). It may be `async`, or a PyTorch module, which is put into
evaluation mode and asked without gradients. None means that a candidate cannot be scored; NaN, a wrong count and
exceptions stop the run with the reward's name.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from rewards.signature import ALIASES, COLUMNS, PICTURES, Open, Table, asked_by, is_module, name_of
from rl.errors import RewindError
from rl.pictures import Picture
from rl.triplets import Candidate

__all__ = ["COLUMNS", "Batch", "Reward", "RewardFunction", "described", "pictures_of", "scorers"]

RewardFunction = Callable[..., "list[float | None] | Awaitable[list[float | None]]"]


@dataclass
class Batch:
    """Candidates of one backbone with everything that a reward may ask for; one entry a candidate in every list.

    `target_image` is None where the true target is unknown. `more` are further columns of the data, a mapping a
    candidate; what one lacks and another has is None for it. Pictures and source ids are made when first asked for.
    """

    prompts: Sequence[str]
    candidates: Sequence[Candidate]
    source_image: Sequence[Picture]
    target_image: Sequence[Picture | None] | None = None
    task: Sequence[str | None] | None = None
    log_metric: Callable[[str, float], None] = field(default=lambda name, value: None)
    trainer_state: Any = None
    more: Sequence[Mapping[str, Any]] | None = None
    table: ClassVar[Table] = PICTURES

    def __post_init__(self) -> None:
        count = len(self.candidates)
        self.target_image = self.target_image if self.target_image is not None else [None] * count
        self.task = self.task if self.task is not None else [None] * count
        self.more = self.more if self.more is not None else [{}] * count
        for name in ("prompts", "source_image", "target_image", "task", "more"):
            if len(getattr(self, name)) != count:
                raise RewindError(f"{count} candidates and {len(getattr(self, name))} entries of '{name}'")

    def told(self, number: int) -> str:
        """A candidate in words, for messages."""
        return self.prompts[number]

    @property
    def columns(self) -> list[str]:
        """Names of the further columns, those that any candidate has."""
        return list(dict.fromkeys(name for row in self.more or () for name in row))

    def column(self, name: str) -> Any:
        """A column by any of its names, a further one too."""
        if name in COLUMNS or name in ALIASES:
            return getattr(self, ALIASES.get(name, name))
        return [row.get(name) for row in self.more or ()]

    @cached_property
    def completions(self) -> list[Any]:
        """The predicted pictures, decoded once for all rewards."""
        return pictures_of(self.candidates)

    @cached_property
    def predicted_ids(self) -> list[list[int]]:
        """Image-token ids of the predictions."""
        return [candidate.ids.tolist() for candidate in self.candidates]

    @cached_property
    def source_ids(self) -> Sequence[list[int]]:
        """Image-token ids of the sources in the candidates' backbone; each picture is encoded once."""
        if not self.candidates:
            return []
        from rl.models.inputs import token_ids

        return token_ids(self.candidates[0].backbone, self.source_image)

    @cached_property
    def changed_tokens(self) -> list[np.ndarray]:
        """Which tokens of each prediction show something else than its source's, bool [K]."""
        pairs = zip(self.candidates, self.source_ids, strict=True)
        return [candidate.backbone.changed(candidate.ids, source) for candidate, source in pairs]

    def only(self, number: int) -> Batch:
        """One candidate as a batch of its own, which logs nothing."""
        one = slice(number, number + 1)
        assert self.target_image is not None
        assert self.task is not None
        assert self.more is not None
        return Batch(
            self.prompts[one],
            self.candidates[one],
            self.source_image[one],
            self.target_image[one],
            self.task[one],
            trainer_state=self.trainer_state,
            more=self.more[one],
        )


def scorers(rewards: Sequence[Reward]) -> dict[str, str]:
    """What the scores of each reward come from, by name, where it says so: for a store of scored candidates."""
    return {reward.name: reward.scorer for reward in rewards if reward.scorer}


def pictures_of(candidates: Sequence[Candidate]) -> list[Image.Image]:
    """The pictures of candidates of one backbone; those that nobody has looked at are decoded together."""
    fresh = [candidate for candidate in candidates if "image" not in vars(candidate)]
    for grid in dict.fromkeys(candidate.grid for candidate in fresh):
        same = [candidate for candidate in fresh if candidate.grid == grid]
        decoded = same[0].backbone.decode(np.stack([candidate.ids for candidate in same]), grid=grid)
        for candidate, array in zip(same, decoded, strict=True):
            vars(candidate)["image"] = Image.fromarray(array)  # where `Candidate.image` keeps it, too
    return [candidate.image for candidate in candidates]


@dataclass(frozen=True)
class Reward:
    """A reward with its name, its weight in the sum, and the columns that it asks for.

    `scorer` is what the scores come from where the name does not say it: the file of a reward of one's own, the server
    of a judge. Stored scores are taken over only from the same scorer. It is empty for what is built in, and for a
    function that is handed over in Python, whose name stands for it.

    `open` is what depends on the columns of the data, until they are known (`on`).
    """

    name: str
    weight: float
    function: RewardFunction
    asks_for: tuple[str, ...]
    scorer: str = ""
    open: Open | None = None

    @classmethod
    def of(cls, function: RewardFunction, name: str | None = None, weight: float = 1.0, scorer: str = "") -> Reward:
        """Check a function's signature once.

        An object may say by a `scorer` of its own (str) what else its scores come from; it is added.

        Raises:
            RewindError: no callable or one without a signature, positional-only parameters, a weight that is no number.
        """
        name = name or name_of(function)
        if not callable(function):
            raise RewindError(f"the reward '{name}' cannot be called: it is a {type(function).__name__}")
        if not math.isfinite(weight):
            raise RewindError(f"the weight of the reward '{name}' must be a number, not {weight}")
        asks_for, left = asked_by(function, name)
        if is_module(function):
            function.eval()  # type: ignore[attr-defined]
        own_scorer = getattr(function, "scorer", "")
        told = [part for part in (scorer, own_scorer) if isinstance(part, str) and part]
        return cls(name, float(weight), function, asks_for, " ".join(told), left)

    def on(self, columns: Iterable[str], table: Table = PICTURES) -> Reward:
        """This reward for data with these further columns; one that knows its data already stays as it is.

        `table` is the role's: of predicted pictures, or of sentences (`rewards.sentences`).

        Raises:
            RewindError: a parameter that nothing can fill, or that only the other role has.
        """
        foreign = [column for column in self.asks_for if column not in table.columns and column not in ALIASES]
        if foreign:
            raise RewindError(
                f"the reward '{self.name}' asks for '{foreign[0]}', so it scores predicted pictures, and here "
                f"sentences are scored (--role idm): it may ask for {', '.join(table.columns)}"
            )
        if self.open is None:
            return self
        return replace(self, asks_for=self.open.columns(self.name, self.asks_for, columns, table), open=None)

    def __call__(self, batch: Batch) -> list[float | None]:
        """One score a candidate.

        Raises:
            RewindError: a parameter that nothing can fill, an exception inside (kept as its cause), a wrong count, NaN
                or something that is no number.
        """
        if self.open is not None:
            return self.on(batch.columns, batch.table)(batch)
        try:
            scores = self._ask(batch)
        except RewindError as error:
            raise RewindError(f"the reward '{self.name}' failed: {error}") from error
        except Exception as error:  # whatever a user's function raises stops the run; it never becomes a number
            where, what = self._where_it_fails(batch, error), described(error) + self._hint(error, batch)
            raise RewindError(f"the reward '{self.name}' failed{where}: {what}") from error
        if scores is None:
            raise RewindError(
                f"the reward '{self.name}' returned None instead of a list with a number or None for each candidate: "
                "is its 'return' missing?"
            )
        try:
            scores = scores.tolist() if hasattr(scores, "tolist") else scores  # a tensor is fetched at once
            listed: list[Any] = [scores] if isinstance(scores, str | Mapping) else list(scores)
            if any(isinstance(score, str | Mapping) for score in listed):
                raise TypeError(f"not {scores!r:.80}")
            found = [None if score is None else float(score) for score in listed]
        except (TypeError, ValueError) as error:
            raise RewindError(f"the reward '{self.name}' must return a list of numbers or None: {error}") from error
        if len(found) != len(batch.candidates):
            count = len(batch.candidates)
            raise RewindError(f"the reward '{self.name}' gave {len(found)} scores for {count} candidates")
        for number, score in enumerate(found):
            if score is not None and not math.isfinite(score):
                raise RewindError(
                    f"the reward '{self.name}' gave {score} for candidate {number} ('{batch.told(number)}'): return "
                    "None for what cannot be scored"
                )
        return found

    def _ask(self, batch: Batch) -> Any:
        """What the function returns, waited for if it is `async`."""
        columns = {column: batch.column(column) for column in self.asks_for}
        if is_module(self.function):
            return _of_module(self.function, columns)
        answer = self.function(**columns)
        return _wait_for(answer) if inspect.isawaitable(answer) else answer

    def _hint(self, error: Exception, batch: Batch) -> str:
        """For a function of pictures that gets sentences, and for one that names no column, as a decorator's does, and
        passes all on to one that takes less.
        """
        if "completions" in self.asks_for and batch.candidates and isinstance(batch.column("completions")[0], str):
            return "; completions are sentences here, as with --role idm"
        named, left = asked_by(self.function, self.name)
        if named or left is None or not left.rest or not isinstance(error, TypeError):
            return ""
        return "; if a decorator hides what it asks for, put functools.wraps into the decorator"

    def _where_it_fails(self, batch: Batch, error: Exception) -> str:
        """The first candidate that fails alone in the same way, in words: the function sees the batch as a whole."""
        for number in range(len(batch.candidates)):
            try:
                self._ask(batch.only(number))
            except Exception as alone:  # what compares candidates fails in another way with one
                if type(alone) is type(error):
                    return f" on candidate {number} ('{batch.told(number)}')"
        return f" on {len(batch.candidates)} candidates together, though on none of them alone"


def described(error: BaseException) -> str:
    """An exception with the innermost place in a user's file: not in an installed package, nor in ours."""
    ours = Path(__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    own = [f for f in frames if "site-packages" not in f.filename and Path(f.filename).parent != ours]
    own = [f for f in own if not f.filename.startswith(sysconfig.get_path("stdlib"))]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _of_module(module: Any, columns: Mapping[str, Any]) -> Any:
    """What a PyTorch module returns, [B] or [B, 1], without gradients."""
    import torch

    with torch.no_grad():
        answer = module(**columns)
    return answer[:, 0] if getattr(answer, "ndim", 0) == 2 and answer.shape[1] == 1 else answer


def _wait_for(answer: Awaitable[Any]) -> Any:
    """The result of an awaitable; in a notebook, where a loop runs already, from a thread with a loop of its own."""

    async def wait() -> Any:
        return await answer

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()
