"""Errors that carry the user's whole situation: stage, parameter, what was given, the remedy."""

from __future__ import annotations

from typing import Self

__all__ = ["StageError"]


class StageError(ValueError):
    """Something a stage was given cannot work.

    Whoever raises it knows what is wrong; the layers above know in which stage and at which
    parameter, and add that on the way up with :meth:`within`.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.stage: str | None = None
        self.parameter: str | None = None

    def within(self, *, stage: str | None = None, parameter: str | None = None) -> Self:
        """Name the stage and the parameter, where they are not named yet."""
        self.stage = self.stage or stage
        self.parameter = self.parameter or parameter
        return self

    def __str__(self) -> str:
        where = [f"stage {self.stage!r}"] if self.stage else []
        where += [f"parameter {self.parameter}"] if self.parameter else []
        return f"{', '.join(where)}: {self.message}" if where else self.message
