"""Targets: what is kept of a teacher's outputs on a view, how it lies in arrays, and what is lost by it."""

from kdpipe.targets.config import FEATURE_FLAGS, FeatureDtype, TargetsConfig
from kdpipe.targets.decoded import Labels, Targets, mix_targets
from kdpipe.targets.encoding import GROUPS, Encoding
from kdpipe.targets.features import ArrayField, Calibration, Feature
from kdpipe.targets.quality import Quality, kl

__all__ = [
    "FEATURE_FLAGS",
    "GROUPS",
    "ArrayField",
    "Calibration",
    "Encoding",
    "Feature",
    "FeatureDtype",
    "Labels",
    "Quality",
    "Targets",
    "TargetsConfig",
    "kl",
    "mix_targets",
]
