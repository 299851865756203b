"""The networks against their equations, trained and merged."""

import pytest
import torch

from kdpipe.models import load_weights, merged
from tests.models import reference
from tests.models.small import FAMILIES, Small, difference, images


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_network_is_its_papers_equations(family: Small, tmp_path):
    state = family.state()
    torch.save(state, tmp_path / "published.pth")
    model = family.make().eval()
    load_weights(model, tmp_path / "published.pth")
    with torch.no_grad():
        assert difference(model(images()), family.forward(state, images())) < 1e-5


@pytest.mark.parametrize(
    ("family", "block", "by_hand"),
    [
        ("slak", "2.blocks.1", lambda s, x: reference.slak_block(s, "stages.2.1", x)),
        ("replknet", "1.blocks.2", lambda s, x: reference.replk_block(s, "stages.1.blocks.2", x)),
        ("replknet", "1.blocks.3", lambda s, x: reference.conv_ffn(s, "stages.1.blocks.3", x)),
        ("unireplknet", "2.blocks.0", lambda s, x: reference.unireplk_block(s, "stages.2.0", x)),
        ("unireplknet", "2.blocks.1", lambda s, x: reference.unireplk_block(s, "stages.2.1", x)),
    ],
)
def test_a_block_is_its_papers_equations(family: str, block: str, by_hand, tmp_path):
    state = FAMILIES[family].state()
    torch.save(state, tmp_path / "published.pth")
    model = FAMILIES[family].make().eval()
    load_weights(model, tmp_path / "published.pth")
    module = model.get_submodule(f"stages.{block}")
    channels = next(p for p in module.parameters() if p.ndim == 4).shape[0 if family != "replknet" else 1]
    x = torch.randn(2, channels, 9, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert difference(module(x), by_hand(state, x)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_merged_form_says_the_same(family: Small, layout: torch.memory_format, tmp_path):
    torch.save(family.state(), tmp_path / "published.pth")
    model = family.make().eval().to(memory_format=layout)
    load_weights(model, tmp_path / "published.pth")
    fewer = merged(model)
    x = images().to(memory_format=layout)
    with torch.no_grad():
        assert difference(fewer(x), model(x)) < 1e-5
        assert difference(fewer.forward_features(x), model.forward_features(x)) < 1e-5
    with torch.device("meta"):
        built = {} if family.model.startswith("slak") else family.make(merged=True).state_dict()
    names = {key.split(".conv_dw.")[1] for key in built if ".conv_dw." in key}
    assert names <= {key.split(".conv_dw.")[1] for key in fewer.state_dict() if ".conv_dw." in key}
    norms = [m for m in fewer.stages.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.stages.modules()), "the model itself is as it was"
