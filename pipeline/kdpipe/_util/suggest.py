"""Suggestions for a name that was probably mistyped."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, names: Iterable[str]) -> str | None:
    """A question that names what is closest to a name, for the end of an error; None where nothing is close."""
    by_case = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), by_case, n=3)
    return f"Did you mean {' or '.join(by_case[name] for name in close)}?" if close else None
