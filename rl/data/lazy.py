"""A sequence whose entries are made when somebody looks at them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class Lazy(Sequence[T_co]):
    """Numbers, also from the end, and slices as a list has them; a class says how many there are and makes one."""

    @abstractmethod
    def make(self, number: int) -> T_co:
        """An entry by its number, from 0 to the last one."""

    @overload
    def __getitem__(self, number: int) -> T_co: ...
    @overload
    def __getitem__(self, number: slice) -> list[T_co]: ...
    def __getitem__(self, number: int | slice) -> T_co | list[T_co]:
        place = range(len(self))[number]
        return self.make(place) if isinstance(place, int) else [self.make(one) for one in place]
