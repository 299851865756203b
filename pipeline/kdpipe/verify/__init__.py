"""Verification: every byte of a cache against its records, and cached outputs against the live teacher."""

from kdpipe.verify.integrity import check_integrity
from kdpipe.verify.replay import check_truth

__all__ = ["check_integrity", "check_truth"]
