"""Verification: every byte of a cache against its records, and cached outputs against the live teacher."""

from kdpipe.verification.integrity import check_integrity
from kdpipe.verification.replay import check_truth

__all__ = ["check_integrity", "check_truth"]
