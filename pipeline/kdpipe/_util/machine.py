"""What this process may use of its machine, and how it keeps what it uses small."""

import ctypes
import os
from contextlib import suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def cores() -> int:
    """Processor cores that this process may use, where the system reports them; else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_malloc_arenas() -> None:
    """Have glibc serve all threads from two arenas; elsewhere nothing.

    Threads that render come and go, and each of its many arenas keeps what was freed in it: a tenth more memory after
    ten tasks than after one. To be called before there are threads.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
