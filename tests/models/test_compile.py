"""torch.export and torch.compile take the networks, also merged."""

import pytest
import timm
import torch
from torch import nn

from kdpipe.models import merged
from tests.models.small import FAMILIES, difference, images, shuffled

MAKERS = {
    "slak_nano": lambda: timm.create_model("slak_nano", num_classes=10),
    "replknet": FAMILIES["replknet"].make,
    "unireplknet": FAMILIES["unireplknet"].make,
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.mark.slow
@makers
@pytest.mark.parametrize("form", [lambda m: m, merged], ids=["trained", "merged"])
def test_export(make, form):
    model = form(shuffled(make()))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(3, 32),), dynamic_shapes=({0: batch},))
    x = images(5, 32)
    with torch.no_grad():
        assert difference(program.module()(x), model(x)) < 1e-5


@pytest.mark.slow
@makers
def test_compile(make):
    model: nn.Module = merged(shuffled(make()))
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert difference(compiled(images(2, 32)), model(images(2, 32))) < 1e-5
