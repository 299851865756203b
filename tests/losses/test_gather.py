"""A batch dealt to processes: what they gather, its gradients, and losses as one process would compute them."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdpipe.losses.bucket import BucketKd
from kdpipe.losses.config import BucketConfig, DistConfig, DkdConfig, NkdConfig
from kdpipe.losses.dist import Dist
from kdpipe.losses.dkd import Dkd
from kdpipe.losses.gather import gathered
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.nkd import Nkd
from kdpipe.targets import Labels, Targets
from tests import children

N, C = 12, 5
# Even, uneven, and nothing at all for one of them.
CUTS = {"even": (0, 6, 12), "uneven": (0, 3, 12), "second empty": (0, 12, 12), "first empty": (0, 0, 12)}


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (N, 4), the teacher's log-probabilities (N, C), labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    x, teacher = torch.randn(N, 4, generator=generator), torch.randn(N, C, generator=generator) * 3
    labels = torch.randint(0, C, (N,), generator=generator)
    labels[2] = -1
    return x, teacher.log_softmax(dim=1), labels


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, C)


def loss_of(student: nn.Module, part: slice, world: int) -> dict[str, torch.Tensor]:
    """DIST of this rank's part of the batch."""
    x, teacher, labels = batch()
    loss = Dist(DistConfig(tau=2.0))
    context = Context(N, int((labels >= 0).sum()), world)
    targets = Targets(teacher[part], dense=True)
    found: dict[str, torch.Tensor] = loss(StudentOutput(student(x[part])), Labels(labels[part]), targets, context)
    return found


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    for name, cuts in CUTS.items():
        part = list(itertools.starmap(slice, itertools.pairwise(cuts)))[rank]
        student = DistributedDataParallel(model())
        found = loss_of(student, part, 2)
        found["loss"].backward()
        parts = {key: value.detach() for key, value in found.items()}
        # Each rank weighs all rows in its own way.
        x = batch()[0][part].requires_grad_()
        everyone = gathered(x, Context(N, N, 2))
        (everyone * (torch.arange(N * 4).reshape(N, 4) + 100 * rank)).sum().backward()
        results[name] = (parts, [p.grad for p in student.parameters()], everyone.detach(), x.grad)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Losses and gradients in each of two processes, for each split of the rows."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda rank: children.run(child, rank, str(folder)), range(2))) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("dealt", list(CUTS))
def test_dist_of_two_processes_is_that_of_one(results, dealt):
    alone = model()
    expected = loss_of(alone, slice(None), 1)
    expected["loss"].backward()
    for key, value in expected.items():
        mean = sum(t[dealt][0][key] for t in results) / 2
        torch.testing.assert_close(mean, value.detach(), rtol=1e-6, atol=1e-7)
    for rank in results:
        for found, parameter in zip(rank[dealt][1], alone.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dealt", list(CUTS))
def test_rows_come_in_the_order_of_ranks_and_gradients_go_back(results, dealt):
    weights = torch.arange(N * 4.0).reshape(N, 4)
    for rank, (start, stop) in zip(results, itertools.pairwise(CUTS[dealt]), strict=True):
        _, _, everyone, gradient = rank[dealt]
        assert torch.equal(everyone, batch()[0])
        assert torch.equal(gradient, (2 * weights + 100)[start:stop])


@pytest.mark.parametrize("dealt", list(CUTS))
@pytest.mark.parametrize("loss", [Nkd(NkdConfig()), Dkd(DkdConfig(warmup=2)), BucketKd(BucketConfig(k=2))])
def test_losses_of_single_rows_do_not_depend_on_how_they_are_dealt(loss, dealt):
    x, teacher, labels = batch()
    student, known = model()(x).detach(), int((labels >= 0).sum())

    def part(rows: slice, world: int) -> dict[str, torch.Tensor]:
        targets, context = Targets(teacher[rows], dense=True), Context(N, known, world, epoch=1.0)
        return loss(StudentOutput(student[rows]), Labels(labels[rows]), targets, context)

    whole = part(slice(None), 1)
    parts = [part(slice(a, b), 2) for a, b in itertools.pairwise(CUTS[dealt])]
    for name, value in whole.items():
        torch.testing.assert_close(sum(p[name] for p in parts) / 2, value, rtol=1e-6, atol=1e-7)


def test_one_process_needs_no_group():
    x = torch.ones(3, 2)
    assert gathered(x, Context(3, 3)) is x
