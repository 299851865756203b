"""What a disturbed run comes to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One whose end state was that of an undisturbed run.

    Attributes:
        what: command and moment.
        ended: how the disturbed process ended.
        error: the line with which it refused, if it did.
    """

    what: str
    ended: str
    error: str = ""


class Finding(Exception):
    """A run that ended wrongly."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"{what}: {problem}")


class Skipped(Exception):
    """This kind of fault can't be had on this system."""
