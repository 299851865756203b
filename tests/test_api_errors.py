"""The hierarchy of errors: what a program catches."""

import pytest

from kdpipe import create_loss, errors
from kdpipe.errors import ConfigError, KdpipeError

CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, KdpipeError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_only_a_configuration_error_is_a_value_error(kind):
    # `except ValueError` around a config must not catch a damaged cache or a missing shard.
    assert issubclass(kind, ValueError) == (kind is ConfigError)


def test_a_message_is_one_line_with_all_its_parts():
    error = ConfigError("unknown key", where="train.lrr", found="lrr", allowed="lr", do="Mend it")
    assert str(error) == "train.lrr: unknown key; found lrr; allowed: lr. Mend it"


def test_an_unknown_setting_is_named_as_by_the_commands():
    with pytest.raises(ConfigError, match=r"create_loss: kd.alpa: unknown key; allowed: alpha, .*Did you mean alpha\?"):
        create_loss("kd", alpa=0.5)
    with pytest.raises(ConfigError, match=r"create_loss: name: unknown loss nkdd; allowed: none, kd, "):
        create_loss("nkdd")
