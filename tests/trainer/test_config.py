"""Settings of training that can't be."""

import pytest
from pydantic import ValidationError

from kdpipe.trainer.config import TrainConfig


def test_a_number_of_epochs_beyond_what_a_float_can_hold():
    with pytest.raises(ValidationError, match="epochs"):
        TrainConfig(epochs=10**400)
    assert TrainConfig(epochs=10**6).warmup == 5
