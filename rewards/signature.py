"""What a reward asks for, read from its signature: the columns that there always are, and those of the data.

A function receives the parameters that it names. `**kwargs` receives the others as in TRL, but only what costs nothing:
no picture is decoded for it where the function names another form of the prediction, and nothing at all comes into
`**_`, whose name says that it is not read.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rl.errors import RewindError
from rl.words import did_you_mean

COLUMNS = (
    "prompts",
    "completions",
    "candidates",
    "source_image",
    "target_image",
    "source_ids",
    "predicted_ids",
    "changed_tokens",
    "task",
    "log_metric",
    "trainer_state",
)
"""Every parameter that a reward may name, whatever the data; further columns of the data come beside."""
ALIASES = {"completion_ids": "predicted_ids"}
"""TRL's name of a column -> ours."""
CHEAP = ("prompts", "predicted_ids", "completion_ids", "source_image", "task", "log_metric", "trainer_state")
"""What `**kwargs` receives beside the further columns of the data. True targets have to be named: who predicts does not
have them, and it is said of a reward that asks."""
PREDICTION = {"completions", "candidates", "predicted_ids", "completion_ids", "changed_tokens"}


@dataclass(frozen=True)
class Table:
    """The columns that rewards of one role may name whatever the data, what `**kwargs` receives of them, and the forms
    of what is scored: where a function names one, `**kwargs` brings no other.
    """

    columns: tuple[str, ...]
    cheap: tuple[str, ...]
    scored: frozenset[str]


PICTURES = Table(COLUMNS, CHEAP, frozenset(PREDICTION))
SENTENCES = Table(
    (
        "prompts",
        "completions",
        "completion_ids",
        "source_image",
        "target_image",
        "source_ids",
        "target_ids",
        "changed_tokens",
        "true_action",
        "task",
        "log_metric",
        "trainer_state",
    ),
    ("prompts", "completions", "completion_ids", "source_image", "target_image", "task", "log_metric", "trainer_state"),
    frozenset({"completions", "completion_ids"}),
)
"""Of the inverse role: what is scored is a sentence about two true pictures."""


@dataclass(frozen=True)
class Open:
    """What a signature leaves to the data: columns that it needs, may take (a default stands for them), does not want
    (bound already), and whether it takes all that cost nothing.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    rest: bool = False

    def columns(
        self, name: str, asks_for: tuple[str, ...], further: Iterable[str], table: Table = PICTURES
    ) -> tuple[str, ...]:
        """All that the reward `name` gets where the data have these further columns, in a role with this table.

        Raises:
            RewindError: one that it needs is not among them.
        """
        there = [column for column in further if column not in table.columns and column not in ALIASES]
        known = [*there, *(column for column in table.columns if column not in COLUMNS)]
        for column in self.needed:
            if column not in known:
                near = did_you_mean(column, [*table.columns, *ALIASES, *there])
                beside = f"and from these data for {', '.join(there)}" if there else "these data have nothing beside"
                raise RewindError(
                    f"the reward '{name}' asks for '{column}', which there is not{near}; it may ask for "
                    f"{', '.join(table.columns)}, {beside}; parameters of its own come from reward_arguments"
                )
        asked = [*asks_for, *self.needed, *(column for column in self.optional if column in known)]
        if self.rest:
            shown = () if table.scored & set(asks_for) else ("completions",)
            asked += [column for column in (*shown, *table.cheap, *there) if column not in self.bound]
        return tuple(dict.fromkeys(asked))


def asked_by(function: Callable[..., Any], name: str) -> tuple[tuple[str, ...], Open | None]:
    """What the reward `name` always gets, and what depends on the data; None if nothing does.

    Raises:
        RewindError: no signature, or positional-only parameters.
    """
    try:
        signature = inspect.signature(function.forward if is_module(function) else function)  # type: ignore[attr-defined]
    except ValueError as error:  # some functions that are written in C
        raise RewindError(f"the reward '{name}' does not say what it asks for: wrap it in a function") from error
    bound = tuple(function.keywords) if isinstance(function, functools.partial) else ()
    asks_for: list[str] = []
    needed: list[str] = []
    optional: list[str] = []
    rest = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = not parameter.name.startswith("_")
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewindError(f"the reward '{name}' takes '{parameter.name}' by position: columns come by name")
        elif parameter.kind is parameter.VAR_POSITIONAL or parameter.name in bound:
            continue
        elif parameter.name in COLUMNS or parameter.name in ALIASES:
            asks_for.append(parameter.name)
        else:
            (needed if parameter.default is parameter.empty else optional).append(parameter.name)
    left = Open(tuple(needed), tuple(optional), bound, rest)
    return tuple(asks_for), left if needed or optional or rest else None


def name_of(function: Any) -> str:
    """A reward's own name: its `name`, or that of the function (for a `partial`, of what it fills in), or its class."""
    while isinstance(function, functools.partial):
        function = function.func
    own = getattr(function, "name", None)
    if isinstance(own, str) and own:
        return own
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")  # '<lambda>'


def is_module(function: Any) -> bool:
    """Whether it is a PyTorch module, whose signature is that of `forward`."""
    torch = sys.modules.get("torch")  # who has made one has imported it
    return torch is not None and isinstance(function, torch.nn.Module)
