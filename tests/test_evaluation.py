"""The evaluator against hand computation, and its independence of how samples come in batches."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kdpipe.errors import TrainingError
from kdpipe.evaluation import BINS, evaluate
from kdpipe.loader import Batch
from kdpipe.targets import Encoding
from kdpipe.teacher import TeacherOutput

CPU = torch.device("cpu")


def batches(labels: torch.Tensor, size: int, fields: dict[str, torch.Tensor] | None = None) -> Iterator[Batch]:
    """Batches whose images carry their row number, so that a model can look its logits up."""
    rows = torch.arange(len(labels))
    images = torch.stack([rows // 256, rows % 256, 0 * rows], dim=1).to(torch.uint8)[:, None, None]
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        targets = {n: t[part] for n, t in (fields or {}).items()}
        yield Batch(images[part], labels[part], rows[part], rows[part] * 0 - 1, 0, 0, size, size, targets=targets)


def saying(logits: torch.Tensor):
    def model(images: torch.Tensor) -> torch.Tensor:
        number = images[:, 0, 0].long()
        return logits[number[:, 0] * 256 + number[:, 1]]

    return model


def test_against_hand_computation():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.62, 0.3, 0.08], [0.2, 0.2, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 2, 0, -1])
    found = evaluate(saying(p.log()), batches(labels, 4), 3, CPU)
    assert found["samples"] == 4
    assert found["labelled"] == 3
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["top5"] == 1  # of three classes all are among the first five
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.4) + math.log(0.62)) / 3)
    # Confidences .7, .5 and .62 lie in three bins: right, wrong, right.
    assert found["ece"] == pytest.approx((0.3 + 0.5 + 0.38) / 3)
    assert "kl" not in found


def test_ece_is_the_textbooks(rows=500, classes=12):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, classes)) * 3
    labels = rng.integers(0, classes, rows)
    found = evaluate(saying(torch.from_numpy(logits)), batches(torch.from_numpy(labels), 64), classes, CPU)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    expected = 0.0
    for i in range(BINS):
        inside = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(expected, abs=1e-12)
    ranked = np.argsort(-logits, axis=1)[:, :5] == labels[:, None]
    assert found["top1"] == ranked[:, 0].mean()
    assert found["top5"] == ranked.any(axis=1).mean()


def test_agreement_and_kl(rows=40, classes=9):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(rows, classes, generator=generator) * 2 for _ in range(2))
    labels = torch.full((rows,), -1)
    encoding = Encoding("dense", classes, "float32", classes)
    arrays = encoding.encode(TeacherOutput(teacher), labels)
    fields = {n: torch.from_numpy(a) for n, a in arrays.items()}
    found = evaluate(saying(student), batches(labels, 16, fields), classes, CPU, cached=encoding.decode)
    assert found["top1"] is None
    assert found["nll"] is None
    first = teacher.argmax(dim=1)
    assert found["agreement_top1"] == (student.argmax(dim=1) == first).double().mean().item()
    assert found["agreement_top5"] == (student.topk(5).indices == first[:, None]).any(dim=1).double().mean().item()
    log_t, log_s = teacher.double().log_softmax(dim=1), student.double().log_softmax(dim=1)
    assert found["kl"] == pytest.approx((log_t.exp() * (log_t - log_s)).sum(dim=1).mean().item(), abs=1e-6)
    itself = evaluate(saying(teacher), batches(labels, 16, fields), classes, CPU, cached=encoding.decode)
    assert itself["agreement_top1"] == 1
    assert abs(itself["kl"]) < 1e-6


def test_independent_of_batch_size():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(300, 11, generator=generator)
    labels = torch.randint(-1, 11, (300,), generator=generator)
    first, *others = (evaluate(saying(logits), batches(labels, size), 11, CPU) for size in (300, 1, 7, 64))
    for other in others:
        assert other == {k: pytest.approx(v, abs=1e-12) for k, v in first.items()}


def test_equal_logits_count_once():
    found = evaluate(saying(torch.zeros(10, 10)), batches(torch.arange(10), 4), 10, CPU)
    assert found["top1"] == 0.1
    assert found["top5"] == 0.5


def test_broken_models_are_refused():
    logits = torch.zeros(6, 3)
    logits[2, 1] = torch.nan
    with pytest.raises(TrainingError, match=r"NaN or infinite; found 1 of 6 samples"):
        evaluate(saying(logits), batches(torch.zeros(6, dtype=torch.int64), 4), 3, CPU)
    with pytest.raises(TrainingError, match=r"no logits; found \(4, 3\); allowed: \(4, 5\)"):
        evaluate(saying(torch.zeros(6, 3)), batches(torch.zeros(6, dtype=torch.int64), 4), 5, CPU)
