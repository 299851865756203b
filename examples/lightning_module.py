"""A Lightning module that distils from a cache; `pip install lightning` first.

python examples/lightning_module.py runs/train.index runs/cache.zarr --epochs 2
"""

import argparse
from typing import Any

import lightning
import timm
import torch

import kdpipe


class Distillation(lightning.LightningModule):
    """A student and its loss.

    Args:
        model: timm's name of the student.
        num_classes: of the teacher.
        loss: name of a loss of logits.
        lr: learning rate.
    """

    def __init__(self, model: str, num_classes: int, loss: str = "kd", lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.student = timm.create_model(model, num_classes=num_classes)
        self.loss = kdpipe.create_loss(loss)
        self.lr = lr

    def training_step(self, batch: kdpipe.CachedBatch, batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        parts = self.loss.parts(self.student(batch.images), batch)
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, batch_size=len(batch))
        return parts["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.student.parameters(), lr=self.lr)


class CachedData(lightning.LightningDataModule):
    """Training batches from a cache, whose position is a part of Lightning's checkpoints.

    Args:
        index, cache: paths.
        options: of `kdpipe.CachedLoader`, such as batch_size and workers.
    """

    def __init__(self, index: str, cache: str, **options: Any) -> None:
        super().__init__()
        self.loader = kdpipe.CachedLoader(index, cache, **options)

    def train_dataloader(self) -> kdpipe.CachedLoader:
        """The loader, which deals with processes, shuffling and epochs by itself."""
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.loader.load_state_dict(state_dict)


def main(index: str, cache: str, *, model: str, epochs: int, batch_size: int, **trainer: Any) -> Distillation:
    """Train."""
    data = CachedData(index, cache, batch_size=batch_size)
    module = Distillation(model, data.loader.num_classes)
    # The loader deals samples to processes: Lightning's sampler must not do so again.
    lightning.Trainer(max_epochs=epochs, use_distributed_sampler=False, **trainer).fit(module, datamodule=data)
    print(kdpipe.evaluate(module.student, index, like=data.loader))
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("cache")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    main(**vars(parser.parse_args()))
