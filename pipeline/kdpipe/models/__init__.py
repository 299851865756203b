"""Models: built by name, loaded strictly, digested. Importing this registers the large-kernel networks with timm."""

from kdpipe.models import replknet, slak, unireplknet
from kdpipe.models.build import ModelSpec, build, first_line
from kdpipe.models.config import ModelConfig
from kdpipe.models.crop import Cropped, Seen, Shape, crop, croppable, inputs_seen
from kdpipe.models.header import read_header
from kdpipe.models.inference import merged
from kdpipe.models.trust import is_factory, require_trusted, runs_code
from kdpipe.models.weights import METADATA_KEY, load_weights, read_metadata, weights_digest, write_weights

__all__ = [
    "METADATA_KEY",
    "Cropped",
    "ModelConfig",
    "ModelSpec",
    "Seen",
    "Shape",
    "build",
    "crop",
    "croppable",
    "first_line",
    "inputs_seen",
    "is_factory",
    "load_weights",
    "merged",
    "read_header",
    "read_metadata",
    "replknet",
    "require_trusted",
    "runs_code",
    "slak",
    "unireplknet",
    "weights_digest",
    "write_weights",
]
