"""Fixtures of tests/fidelity/tiny.py for the tests of this folder."""

from tests.fidelity.tiny import index, setup, weights  # noqa: F401
