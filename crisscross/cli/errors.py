"""The error that a command ends with: told to the user in one line."""

from __future__ import annotations

from crisscross.errors import CrissCrossError

__all__ = ["CommandError"]


class CommandError(CrissCrossError):
    """A command cannot go on; its message is one line, printed without a traceback."""
