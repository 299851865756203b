"""A plain PyTorch loop over a cache, with a loss of one's own, resumed inside an epoch.

python examples/plain_loop.py runs/train.index runs/cache.zarr --epochs 2
"""

import argparse
from pathlib import Path

import timm
import torch
from torch.nn import functional as F

import kdpipe


def my_loss(logits: torch.Tensor, batch: kdpipe.CachedBatch) -> torch.Tensor:
    """Half cross entropy against the labels, half the Jensen-Shannon divergence to the teacher.

    Args:
        logits: of the student, (n, C).
        batch: labels int64 (n,), -1 where there is none; targets.log_probs float32 (n, C).
    """
    student, teacher = F.log_softmax(logits.float(), dim=1), batch.targets.log_probs
    assert teacher is not None  # they are by default; None where only features were requested
    middle = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
    divergence = [F.kl_div(middle, p, reduction="batchmean", log_target=True) for p in (student, teacher)]
    ce = F.cross_entropy(logits.float(), batch.labels, ignore_index=-1) if (batch.labels >= 0).any() else 0.0
    return 0.5 * ce + 0.25 * (divergence[0] + divergence[1])


def main(index: str, cache: str, *, model: str, epochs: int, batch_size: int, lr: float, checkpoint: str) -> float:
    """Train and return the last loss; repeat it to resume from `checkpoint`."""
    with kdpipe.CachedLoader(index, cache, batch_size) as loader:
        print(loader)
        student = timm.create_model(model, num_classes=loader.num_classes)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
        if Path(checkpoint).is_file():
            state = torch.load(checkpoint, weights_only=True)
            student.load_state_dict(state["student"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
        loss = torch.tensor(float("nan"))
        while loader.epoch < epochs:
            for batch in loader:
                loss = my_loss(student(batch.images), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {loader.epoch}/{epochs}: loss {loss.item():.4f}")
            parts = {"student": student, "optimizer": optimizer, "loader": loader}
            torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
        print(kdpipe.evaluate(student, index, like=loader))
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("cache")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    main(**vars(parser.parse_args()))
