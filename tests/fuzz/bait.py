"""What a hostile file names as code. That it was imported is seen in `sys.modules`, a call by what it raises.

Nothing of the tests imports it.
"""

import os
from pathlib import Path
from typing import Any

TRACE = "KDPIPE_BAIT"


class Sprung(BaseException):
    """Code that a file names was called. No handler of ordinary exceptions can hide it."""


def sprung(*args: Any, **kwargs: Any) -> None:
    """Leave a trace in the file that the environment names, if it does, and raise."""
    _leave("called")
    raise Sprung("code was called that a file names")


def _leave(what: str) -> None:
    if TRACE in os.environ:
        Path(os.environ[TRACE]).write_text(what)


_leave("imported")
