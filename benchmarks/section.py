"""What a section of docs/benchmarks.md is made of."""

import operator
from dataclasses import dataclass
from typing import Literal

_SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}


@dataclass(frozen=True)
class Bound:
    """What a row's figure must hold."""

    sign: Literal["≤", "<", "≥"]
    value: float
    of: Literal["ours", "ratio"] = "ours"

    def holds(self, figure: float) -> bool:
        """Whether a figure is within."""
        return bool(_SIGNS[self.sign](figure, self.value))

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """A line of the table: paths into the report (keys joined by dots), "" for none, and how to write the figures."""

    label: str
    ours: str = ""
    peer: str = ""
    ratio: str = ""
    form: str = ".2f"
    bound: Bound | None = None


@dataclass(frozen=True)
class Section:
    """One bench as `python -m benchmarks all` runs it, and its part of the document.

    `text` and `note`, before and after the table, may hold figures of the report in braces.
    """

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    words: tuple[str, ...]
    ratio: str = "ours / peer"
    note: str = ""
    photographs: bool = False  # measures little on the digits: is given the user's --index
    operations: bool = False  # its report has a table of operations
