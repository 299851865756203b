"""Knowledge distillation of vision models from cached teacher outputs.

Index the shards (`build_index`), run the teacher once over augmented views of them (`cache_teacher`), check the result
(`verify`), then train any number of students: with `train`, or in a loop of your own over a `CachedLoader`, whose
batches have the same pixels as with the teacher online and the teacher's outputs on exactly those pixels.

Names are imported when they are first used: `import kdpipe` imports neither torch nor timm.
"""

import typing as _typing
from importlib import import_module as _import

if _typing.TYPE_CHECKING:
    from kdpipe.api import (
        cache_teacher,
        evaluate,
        inspect,
        train,
        verify,
    )
    from kdpipe.cached_loader import CachedBatch, CachedLoader, create_loss
    from kdpipe.errors import KdpipeError
    from kdpipe.losses import Loss, register_loss
    from kdpipe.opening import open_cache, open_index
    from kdpipe.shards import build_index
    from kdpipe.teacher import Teacher

__version__: str

_MODULES = {
    "build_index": "shards",
    "open_index": "opening",
    "cache_teacher": "api",
    "open_cache": "opening",
    "verify": "api",
    "inspect": "api",
    "CachedLoader": "cached_loader",
    "CachedBatch": "cached_loader",
    "create_loss": "cached_loader",
    "Loss": "losses",
    "register_loss": "losses",
    "train": "api",
    "evaluate": "api",
    "Teacher": "teacher",
    "KdpipeError": "errors",
}

__all__ = [
    "CachedBatch",
    "CachedLoader",
    "KdpipeError",
    "Loss",
    "Teacher",
    "__version__",
    "build_index",
    "cache_teacher",
    "create_loss",
    "evaluate",
    "inspect",
    "open_cache",
    "open_index",
    "register_loss",
    "train",
    "verify",
]


def __getattr__(name: str) -> _typing.Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
