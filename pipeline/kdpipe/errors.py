"""Failures a user can act on: one base class, one class per kind of failure.

Every message is one line that gives where, what was wrong, the value found, the value allowed, and what to
do. The command line prints it and exits with 2; programs catch `KdpipeError` or the kind they can handle.
Secrets of URLs and control characters never get into a message, whatever the text that is put into it.
"""

from kdpipe._util.redact import showable


class KdpipeError(Exception):
    """A mistake outside the code: in an argument, a file, a store or the environment.

    Args:
        what: what is wrong, a clause without a full stop.
        where: the file, key or object it concerns.
        found: the offending value; shown as it is.
        allowed: what would have been accepted.
        do: the remedy, a sentence without a full stop.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        allowed: object = None,
        do: str | None = None,
    ) -> None:
        shown = [None if value is None else showable(str(value)) for value in (where, found, allowed, do)]
        self.what: str = showable(str(what))
        self.where, self.found, self.allowed, self.do = where, found, allowed, do = shown
        text = self.what if where is None else f"{where}: {self.what}"
        if found is not None:
            text += f"; found {found}"
        if allowed is not None:
            text += f"; allowed: {allowed}"
        if do is not None:
            text += f". {do}"
        super().__init__(text)


class ConfigError(KdpipeError, ValueError):
    """An argument, an option or a key of a config file is unknown, of the wrong type or impossible."""


class ShardError(KdpipeError):
    """A shard can't be found, read or understood, or is not the one that was indexed."""


class ImageError(KdpipeError):
    """Bytes that should be an image are not, or not one that can be used."""


class IndexFileError(KdpipeError):
    """An index is missing, damaged or of another format version."""


class ViewError(KdpipeError):
    """A view can't be drawn or rendered, or does not look as it did when it was cached."""


class TeacherError(KdpipeError):
    """A model or its weights can't be found, loaded or run."""


class TargetsError(KdpipeError):
    """The cached targets can't serve a request."""


class CacheError(KdpipeError):
    """A cache is missing, incomplete or can't be written."""


class CorruptionError(CacheError):
    """Stored bytes are not the bytes that were written."""


class IdentityError(CacheError):
    """A cache and what it is used with don't match; the field that differs is named."""


class CheckpointError(KdpipeError):
    """A training checkpoint can't be written, read or continued."""


class TrainingError(KdpipeError):
    """A training run can't start or resume."""
