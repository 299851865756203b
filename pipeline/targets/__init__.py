"""Targets: what is kept of a teacher's answer on a view, how it lies in arrays, and what is lost by it."""

from pipeline.targets.config import FeatureDtype, TargetsConfig
from pipeline.targets.decoded import Labels, Targets, mix_targets
from pipeline.targets.encoding import GROUPS, Encoding
from pipeline.targets.features import ArrayField, Calibration, Feature
from pipeline.targets.quality import Quality, kl, quality

__all__ = [
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
    "quality",
]
