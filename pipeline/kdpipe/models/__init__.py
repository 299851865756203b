"""Models: built by name, loaded strictly, digested."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.models.build import ModelSpec, first_line
    from kdpipe.models.config import ModelConfig
    from kdpipe.models.crop import Cropped, Seen, Shape, croppable, inputs_seen
    from kdpipe.models.header import read_header
    from kdpipe.models.inference import merged
    from kdpipe.models.trust import is_factory, require_trusted, runs_code
    from kdpipe.models.weights import METADATA_KEY, load_weights, read_metadata, weights_digest, write_weights
else:
    __getattr__ = exports(
        __name__,
        {
            "build": "ModelSpec first_line",
            "config": "ModelConfig",
            "crop": "Cropped Seen Shape croppable inputs_seen",
            "header": "read_header",
            "inference": "merged",
            "trust": "is_factory require_trusted runs_code",
            "weights": "METADATA_KEY load_weights read_metadata weights_digest write_weights",
        },
    )
