"""Child processes that die when a test wants them to.

Children are forked from a server that has imported everything and computed nothing: they start in
milliseconds, and no library's threads have been forked.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

_context = multiprocessing.get_context("forkserver")
_modules = ["tests.tiny", "kdpipe.loader", "kdpipe.trainer"]
_context.set_forkserver_preload(_modules)


def preload(*modules: str) -> None:
    """Have the server import more; of no effect once it has started."""
    _modules.extend(module for module in modules if module not in _modules)
    _context.set_forkserver_preload(_modules)


def start(target: Callable[..., None], *args: Any) -> Any:
    """A child that runs a function of a test module, as `multiprocessing.Process`."""
    # Its server's environment is that of the first test that had a child.
    child = _context.Process(target=_in_environment, args=(dict(os.environ), target, *args))
    child.start()
    return child


def run(target: Callable[..., None], *args: Any, timeout: float = 120) -> int:
    """Run a function of a test module in a child; its exit code, negative for the signal that killed it."""
    child = start(target, *args)
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
        raise AssertionError(f"child did not end within {timeout} s")
    return int(child.exitcode or 0)


def _in_environment(variables: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    os.environ.clear()
    os.environ.update(variables)
    target(*args)


def die() -> None:
    """As a power cut does: no handler, no flush, no goodbye."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(function: Callable[..., Any], call: int, *, after: bool = False) -> Callable[..., Any]:
    """`function`, but its `call`-th call (from 1) kills the process: before it, or after it has returned."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not after:
            die()
        result = function(*args, **kwargs)
        if count == call:
            die()
        return result

    return wrapped
