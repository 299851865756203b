"""Branches summed, and merged into as few kernels as they allow."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.models.large_kernel import Branch, ConvBn, LargeKernelConv, folded_before
from tests.models.small import difference, shuffled

STRIPES = [Branch((13, 5)), Branch((5, 13)), Branch((5, 5))]
SQUARES = [Branch((9, 9)), Branch((5, 5))]
DILATED = [Branch((5, 5)), Branch((13, 13)), Branch((7, 7), 2), Branch((3, 3), 5)]
SPREAD = [Branch((7, 3), 2), Branch((3, 7), 2), Branch((3, 3), 2)]


@pytest.mark.parametrize(
    ("branches", "kernels"),
    [
        (STRIPES, [(13, 5), (5, 13)]),
        (SQUARES, [(9, 9)]),
        (DILATED, [(13, 13)]),
        (SPREAD, [(13, 5), (5, 13)]),
        ([Branch((3, 3))], [(3, 3)]),
    ],
)
def test_merged_is_the_sum_of_the_branches(branches: list[Branch], kernels: list[tuple[int, int]]):
    conv = shuffled(LargeKernelConv(6, branches))
    x = torch.randn(2, 6, 11, 14, generator=torch.Generator().manual_seed(1))
    by_hand = sum(
        F.batch_norm(
            F.conv2d(
                x,
                b.conv.weight,
                padding=[side // 2 * taps.dilation for side in taps.kernel],
                dilation=taps.dilation,
                groups=6,
            ),
            b.bn.running_mean,
            b.bn.running_var,
            b.bn.weight,
            b.bn.bias,
            eps=b.bn.eps,
        )
        for b, taps in zip(conv.branches, branches, strict=True)
    )
    with torch.no_grad():
        assert difference(conv(x), by_hand) < 1e-6
        conv.reparameterize()
        assert [c.kernel_size for c in conv.branches] == kernels
        assert difference(conv(x), by_hand) < 1e-6
        once = conv(x)
        conv.reparameterize()
        assert torch.equal(conv(x), once)


def test_built_merged_it_has_the_tensors_of_the_merged():
    merged = LargeKernelConv(6, DILATED)
    merged.reparameterize()
    built = LargeKernelConv(6, DILATED, merged=True)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in merged.state_dict().items()}


def test_a_batch_norm_before_a_convolution_is_folded():
    bn, conv = shuffled(nn.BatchNorm2d(4)), shuffled(nn.Conv2d(4, 6, 1))
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    assert difference(folded_before(bn, conv)(x), conv(bn(x))) < 1e-6


def test_merging_keeps_what_is_frozen_frozen():
    conv = LargeKernelConv(4, SQUARES).requires_grad_(False)
    conv.reparameterize()
    assert not any(p.requires_grad for p in conv.parameters())


def test_an_even_kernel_has_no_centre():
    with pytest.raises(ValueError, match="odd sides, not 4 x 3"):
        ConvBn(2, 2, (4, 3))
