"""How a picture and a prompt are written as tokens: what is drawn and what stands there by rule.

A picture is a grid of codes between tokens that its family forces: a header (with or without the size), the end of each
row, a trailer. Only the codes are drawn, scored and learned; a forced token has the probability 1, so it takes no part
in loss, KL or entropy. A prompt is a list of segments that a family's template puts in order. Both are data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from rl.codes import Grid
from rl.errors import RewindError


@dataclass(frozen=True)
class PictureGrammar:
    """The tokens around a picture's codes. Several views of one scene are pictures one after the other.

    Args:
        grid: of the picture; `of` gives the grammar of another one.
        header: ids before the first code, the size among them where a family writes it.
        trailer: ids after the last row.
        row_end: an id after each row; None where rows are not told apart.
        row_end_last: whether the last row has it too.
        header_of: the header of any grid, for families that write the size.
    """

    grid: Grid
    header: tuple[int, ...]
    trailer: tuple[int, ...]
    row_end: int | None = None
    row_end_last: bool = True
    header_of: Callable[[Grid], tuple[int, ...]] | None = field(default=None, compare=False, repr=False)

    def of(self, grid: Grid) -> PictureGrammar:
        """The grammar of pictures of another grid."""
        if grid == self.grid:
            return self
        if grid not in self._others:
            header = self.header if self.header_of is None else self.header_of(grid.one)
            self._others[grid] = replace(self, grid=grid, header=header)
        return self._others[grid]

    @cached_property
    def _others(self) -> dict[Grid, PictureGrammar]:
        return {}

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """The ids that are forced behind each code, up to the next one, K tuples; nothing is read behind the last."""
        rows, columns, views = self.grid.rows, self.grid.columns, self.grid.views
        end = () if self.row_end is None else (self.row_end,)
        between = (*self._last, *self.trailer, *self.header)  # a view ends and the next one begins
        ends = [((),) * (columns - 1) + (end if row + 1 < rows else between,) for row in range(rows)] * views
        return (*[ids for row in ends for ids in row][:-1], ())

    @cached_property
    def free(self) -> tuple[bool, ...]:
        """Which tokens from the first code to the last are codes (T of them): the others are forced."""
        return tuple(is_code for ids in self.after for is_code in (True, *(False for _ in ids)))

    def target(self, codes_K: Sequence[int]) -> list[int]:
        """What is written after the header, up to the last code: codes and the ends of rows between them (T ids)."""
        if len(codes_K) != self.grid.codes:
            raise RewindError(f"a picture has {self.grid.codes} codes here, not {len(codes_K)}")
        return [token for code, ids in zip(codes_K, self.after, strict=True) for token in (code, *ids)]

    def codes(self, target_T: Sequence[int]) -> list[int]:
        """The codes (K ids) of what `target` wrote."""
        return [token for token, is_code in zip(target_T, self.free, strict=True) if is_code]

    def spread(self, values_K: Sequence[Any], forced: Any) -> list[Any]:
        """One value a code as one a token from the first code to the last, `forced` where a token is none."""
        given = iter(values_K)
        return [next(given) if is_code else forced for is_code in self.free]

    @cached_property
    def _forced(self) -> tuple[np.ndarray, np.ndarray]:
        """Where codes stand from the first one to the last, bool [T], and what stands elsewhere, int64 [T]."""
        tokens = self.target([0] * self.grid.codes)
        return np.array(self.free), np.array(tokens)

    def target_array(self, codes_K: np.ndarray) -> np.ndarray:
        """`target` on arrays, int64 [T]."""
        free, forced = self._forced
        found: np.ndarray = forced.copy()
        found[free] = codes_K
        return found

    def spread_array(self, values_K: np.ndarray, forced: Any) -> np.ndarray:
        """`spread` on arrays, [T] of the values' dtype."""
        free, _ = self._forced
        found = np.full(len(free), forced, dtype=values_K.dtype)
        found[free] = values_K
        return found

    def picture_array(self, codes_K: np.ndarray) -> np.ndarray:
        """`picture` on arrays, int64 [...]."""
        target = self.target_array(codes_K)
        return np.concatenate([np.array(self.header, int), target, np.array((*self._last, *self.trailer), int)])

    def picture(self, codes_K: Sequence[int]) -> list[int]:
        """A whole picture: header, rows, trailer."""
        return [*self.header, *self.target(codes_K), *self._last, *self.trailer]

    @property
    def _last(self) -> tuple[int, ...]:
        """What stands behind the last row."""
        return (self.row_end,) if self.row_end is not None and self.row_end_last else ()

    @property
    def forced(self) -> frozenset[int]:
        """Ids that may stand between the codes of a target, of several views too."""
        return frozenset((*(() if self.row_end is None else (self.row_end,)), *self.trailer, *self.header))


@dataclass(frozen=True)
class Template:
    """The order of a prompt's segments, as data.

    A segment is '{action}', '{source}' or '{target}' (a picture), '{header}' (of the picture to be drawn), a marker
    '<bos>', '<eos>', '<sep>', ..., or a text, which is tokenised by itself.

    Args:
        fdm: before the first code of the target.
        fdm_free: the same without the action, which guidance compares with.
        fdm_freer: further ones, each with less of the condition, for guidance by several numbers.
        idm: before the first token of the action.
        fdm_vector: as `fdm`, where the action is a vector and another order is usual; empty if not.
        markers: ids of markers beside <bos> and <eos>.
    """

    fdm: tuple[str, ...] = ("<bos>", "{action}", "{source}", "{header}")
    fdm_free: tuple[str, ...] = ("<bos>", "{source}", "{header}")
    fdm_freer: tuple[tuple[str, ...], ...] = ()
    idm: tuple[str, ...] = ("<bos>", "{source}", "{target}")
    markers: Mapping[str, int] = field(default_factory=dict)
    fdm_vector: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Template:
        """A template from `rewind.json`.

        Raises:
            RewindError: an unknown key.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise RewindError(f"a prompt template has no '{unknown[0]}': it has {', '.join(cls.__dataclass_fields__)}")
        return cls(**{key: _tuples(value) for key, value in values.items()})

    @property
    def words_first(self) -> bool:
        """Whether the FDM's prompt without its words is its tail: then a loss can leave the words out by a mask."""
        return self.fdm[:2] == ("<bos>", "{action}") and (*self.fdm[:1], *self.fdm[2:]) == self.fdm_free


def _tuples(value: Any) -> Any:
    """Lists as tuples, those in them too."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
