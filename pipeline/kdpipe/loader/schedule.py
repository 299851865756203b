"""Which views an epoch shows."""

from collections.abc import Sequence

from kdpipe.errors import TargetsError
from kdpipe.loader.config import ViewSchedule
from kdpipe.views.draws import permutation


def views_of(
    epoch: int, views: Sequence[int] | None, schedule: ViewSchedule, seed: int, together: int = 1
) -> tuple[int, ...]:
    """The view numbers that epoch `epoch` shows.

    Each epoch shows one view of every sample; or, with `together` views a decode, so many epochs in a row show as
    many views, each sample's within one of them. Without a cache (`views` None) none ever repeats. With one,
    epochs show the cached views in order; beyond them `cycle` goes round again in a new permutation
    each time, and `strict` refuses.

    Raises:
        TargetsError: under `strict`, past the last cached view; or `together` doesn't divide the cached views.
    """
    number = epoch // together
    if views is None:
        return tuple(range(number * together, (number + 1) * together))
    if len(views) % together:
        raise TargetsError(
            "views_per_decode doesn't divide the cached views",
            found=together,
            allowed=f"a divisor of {len(views)}",
            do="Set loader.views_per_decode to one, or cache more views",
        )
    rounds, place = divmod(number, len(views) // together)
    if rounds:
        if schedule == "strict":
            raise TargetsError(
                "view schedule strict: more epochs than cached views",
                found=f"epoch {epoch}",
                allowed=f"{len(views)} epochs",
                do="Cache more views with kdpipe cache-teacher --views, or use --view-schedule cycle",
            )
        place = int(permutation(len(views) // together, "views", seed, rounds)[place])
    return tuple(views[place * together : (place + 1) * together])
