"""How samples reach training: settings that are read and checked without torch."""

from typing import Literal

from pydantic import Field

from kdpipe.config import Config
from kdpipe.views.canaries import CanaryTolerance

ViewSchedule = Literal["cycle", "strict"]


class LoaderConfig(Config):
    """How samples reach training. All but workers and canary tolerance changes what a step sees."""

    workers: int = Field(0, ge=0, description="Loader processes; 0 renders in the training process.")
    streams: int = Field(
        64, ge=1, description="Blocks that are read side by side; best a multiple of the number of processes."
    )
    window: int = Field(8, ge=1, description="Blocks of a stream that are shuffled together.")
    views_per_decode: int = Field(
        1, ge=1, description="Consecutive views of a sample in a batch, for which its image is decoded once."
    )
    view_schedule: ViewSchedule = Field(
        "cycle", description="Epochs beyond the number of cached views: cycle repeats the views, strict is an error."
    )
    canary_tolerance: CanaryTolerance = Field(
        0, description="Levels of 255 by which the cache's canaries may differ when rendered on this machine."
    )
