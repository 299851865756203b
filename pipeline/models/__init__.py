"""Models: built by name, loaded strictly, digested."""

from pipeline.models.build import Built, ModelConfig, build, first_line, is_factory
from pipeline.models.weights import METADATA_KEY, load_weights, read_metadata, weights_digest

__all__ = [
    "METADATA_KEY",
    "Built",
    "ModelConfig",
    "build",
    "first_line",
    "is_factory",
    "load_weights",
    "read_metadata",
    "weights_digest",
]
