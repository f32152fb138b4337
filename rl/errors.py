"""The one exception that scripts print as a sentence instead of a traceback."""

from __future__ import annotations


class RewindError(Exception):
    """Something in the user's input or files is wrong.

    The message is one sentence or two: what is wrong, where, and what to do about it.
    """
