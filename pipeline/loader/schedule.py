"""Which view an epoch shows."""

from collections.abc import Sequence
from typing import Literal

from pipeline.errors import TargetsError
from pipeline.views.draws import permutation

ViewSchedule = Literal["cycle", "strict"]


def view_of(epoch: int, views: Sequence[int] | None, schedule: ViewSchedule, seed: int) -> int:
    """The view number that epoch `epoch` shows of every sample.

    Without a cache (`views` None) each epoch has a view of its own, so none repeats. With one, epoch e shows
    the e-th cached view; beyond them `cycle` goes round again in a new permutation each time, and `strict`
    refuses.

    Raises:
        TargetsError: under `strict`, past the last cached view.
    """
    if views is None:
        return epoch
    again, place = divmod(epoch, len(views))
    if again == 0:
        return views[place]
    if schedule == "strict":
        raise TargetsError(
            "view schedule strict: more epochs than cached views",
            found=f"epoch {epoch}",
            allowed=f"{len(views)} epochs",
            do="Cache more views with kdpipe cache-teacher --views, or use --view-schedule cycle",
        )
    return views[int(permutation(len(views), "views", seed, again)[place])]
