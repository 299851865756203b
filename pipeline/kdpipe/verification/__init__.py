"""Verification: every byte of a cache against its records, and cached outputs against the live teacher."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.verification.integrity import check_integrity
    from kdpipe.verification.replay import check_truth
else:
    __getattr__ = exports(
        __name__,
        {
            "integrity": "check_integrity",
            "replay": "check_truth",
        },
    )
