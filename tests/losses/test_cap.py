"""Cross-attention projector against plain NumPy in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdpipe.errors import TrainingError
from kdpipe.losses.cap import CrossAttentionProjector, attend

STUDENT, TEACHER = (5, 3, 4), (6, 2, 3)


def projector(learned: bool = True, inner: int = 8) -> CrossAttentionProjector:
    torch.manual_seed(0)
    cap = CrossAttentionProjector(STUDENT, TEACHER, heads=2, inner=inner, learned=learned)
    with torch.no_grad():
        for parameter in cap.parameters():  # whatever starts at 0 or 1 would hide
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return cap


def attention_by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    out = np.zeros_like(q)
    d = q.shape[2] // heads
    for b in range(len(q)):
        for h in range(heads):
            at = slice(h * d, (h + 1) * d)
            for i in range(q.shape[1]):
                scores = np.array([5 / np.sqrt(d) * q[b, i, at] @ k[b, j, at] for j in range(k.shape[1])])
                weights = np.exp(scores - scores.max())
                out[b, i, at] = (weights / weights.sum()) @ v[b, :, at]
    return out


def by_hand(cap: CrossAttentionProjector, x: np.ndarray, queries: np.ndarray | None) -> np.ndarray:
    """The equations of CAP one after the other; batch statistics of the batch."""
    p = {name: value.detach().double().numpy() for name, value in cap.state_dict().items()}

    def linear(name: str, z: np.ndarray) -> np.ndarray:
        return z @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            y[:, :, i, j] = np.einsum("ncyx,ocyx->no", padded[:, :, i : i + 3, j : j + 3], p["conv.weight"])
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
    y = (y - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    y = np.maximum(y * p["bn.weight"][:, None, None] + p["bn.bias"][:, None, None], 0) + p["position"]
    tokens = y.reshape(n, c, h * w).transpose(0, 2, 1)
    if queries is None:
        queried = np.repeat(p["queries"][None], n, axis=0)
    else:
        queried = queries.reshape(n, TEACHER[0], -1).transpose(0, 2, 1)
    q = linear("q", np.maximum(linear("query_conv", queried), 0))
    o = linear("out", attention_by_hand(q, linear("k", tokens), linear("v", tokens), cap.heads))
    u = (o - o.mean(2, keepdims=True)) / np.sqrt(o.var(2, keepdims=True) + 1e-5)
    u = u * p["norm.weight"] + p["norm.bias"]
    z = u + linear("narrow", np.maximum(linear("widen", u), 0))
    return z.transpose(0, 2, 1).reshape(n, *TEACHER)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("inner", [6, 8])
def test_projector_is_its_equations(learned, inner):
    cap = projector(learned, inner)
    x, queries = torch.randn(3, *STUDENT), None if learned else torch.randn(3, *TEACHER)
    found = cap(x, queries)
    expected = by_hand(cap, x.double().numpy(), None if queries is None else queries.double().numpy())
    assert found.shape == (3, *TEACHER)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=2e-6)
    exact = projector(learned, inner).double()(x.double(), None if queries is None else queries.double())
    np.testing.assert_allclose(exact.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_attention_gradients():
    q, k, v = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5))
    assert gradcheck(lambda *qkv: attend(*qkv, heads=2), (q, k, v))


def test_gradients_reach_the_map_and_given_queries():
    cap = projector(learned=False).double().eval()
    x, queries = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in (STUDENT, TEACHER))
    assert gradcheck(cap, (x, queries))


@pytest.mark.parametrize(
    ("channels", "head_width", "heads", "inner"),
    [
        (768, 48, 16, 768),  # Swin-L's last stage but one
        (1536, 64, 24, 1536),  # and its last
        (384, 48, 8, 384),
        (499, 48, 8, 512),  # SLaK's
        (998, 64, 16, 1024),
        (665, 48, 11, 704),
        (80, 48, 2, 128),
        (20, 64, 1, 64),
    ],
)
def test_heads_and_width_follow_the_teacher(channels, head_width, heads, inner):
    with torch.device("meta"):
        cap = CrossAttentionProjector.of_width((8, 4, 4), (channels, 2, 2), head_width)
    assert (cap.heads, cap.q.out_features, cap.out.in_features) == (heads, inner, inner)
    assert cap.out.out_features == channels
    assert cap.queries.shape == (4, channels)


def test_every_size_of_batch_passes():
    cap = projector().train()
    for rows in (0, 1, 4):
        found = cap(torch.randn(rows, *STUDENT))
        assert found.shape == (rows, *TEACHER)
        assert found.isfinite().all()
        found.sum().backward()
    assert all(value.isfinite().all() for value in cap.state_dict().values())


def test_maps_of_another_size_are_refused():
    with pytest.raises(TrainingError, match=r"another shape.*found \(5, 6, 6\); allowed: \(5, 3, 4\)"):
        projector()(torch.randn(2, 5, 6, 6))
