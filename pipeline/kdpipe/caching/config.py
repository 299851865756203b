"""How a cache is made: settings that are read and checked without torch."""

from pydantic import Field

from kdpipe.config import Config
from kdpipe.views.canaries import CanaryTolerance


class CachingConfig(Config):
    """How a cache is made; only `calibration_from` and `allow_nondeterministic` change what is in it."""

    render_threads: int | None = Field(None, ge=1, description="Threads that decode and render; by default one a core.")
    canary_tolerance: CanaryTolerance = Field(
        0, description="Levels of 255 by which an existing cache's canaries may differ when rendered on this machine."
    )
    calibration_from: str | None = Field(
        None, description="Cache from which the calibration of the feature map is copied, so that both can be merged."
    )
    allow_nondeterministic: bool = Field(
        False, description="Cache one output of a stochastic teacher; verify then compares averages only."
    )
    strict: bool = Field(False, description="Signs of a poor teacher are errors (exit code 2).")
