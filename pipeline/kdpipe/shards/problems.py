"""Bad samples, files and shards: all of them reported at once, or listed where they are left out."""

from collections.abc import Sequence

from kdpipe.errors import KdpipeError, ShardError

# Most problems of a set that are reported at once.
MOST = 20


class Problems(ShardError):
    """Several things of a set are bad; the message is about the first.

    Attributes:
        errors: up to MOST of them, in order.
    """

    def __init__(self, errors: Sequence[KdpipeError]) -> None:
        first, count = errors[0], f"{len(errors)} problems" if len(errors) < MOST else f"the first {MOST} problems"
        do = f"{first.do}. " if first.do else ""
        do += f"This is one of {count}: repair them, or leave all of them out by --skip-bad"
        super().__init__(first.what, where=first.where, found=first.found, allowed=first.allowed, do=do)
        self.errors = list(errors)

    def lines(self) -> list[str]:
        """One of each."""
        return [str(error) for error in self.errors]


def raise_all(errors: Sequence[KdpipeError]) -> None:
    """Raise one error for all, if there are any; a single one as it is."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Problems(errors[:MOST])
