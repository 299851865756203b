"""One optimisation step, a pure function of weights, batch and the step's number."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdpipe._util.fingerprint import fingerprint
from kdpipe.errors import KdpipeError, TrainingError
from kdpipe.loader import Batch
from kdpipe.losses import Context
from kdpipe.models import ModelConfig, ModelSpec, first_line
from kdpipe.models.build import build
from kdpipe.models.wrappers.logits import standardised
from kdpipe.teacher import resolve_device
from kdpipe.trainer.config import TrainConfig
from kdpipe.trainer.distributed import Distributed
from kdpipe.trainer.module import DistillationModule
from kdpipe.views import Erased, Normalize

# The teacher's outputs for a batch: Targets decoded from the cache, or of a live teacher; of several a tuple.
TargetsOf = Callable[[Batch], Any]


class Step:
    """A student with everything that trains it.

    Args:
        distillation: the student and its loss, not yet on a device.
        config: see TrainConfig.
        updates: steps of an epoch, for the schedule.
        targets_of: the teacher's targets for a batch; None where the loss needs none.
        ranks: the processes of the run; by default only this one, on `config.device`.

    Raises:
        TrainingError: optimizer or schedule can't be made of these settings.
    """

    def __init__(
        self,
        distillation: DistillationModule,
        config: TrainConfig,
        *,
        updates: int,
        targets_of: TargetsOf | None,
        ranks: Distributed | None = None,
    ) -> None:
        ranks = ranks or Distributed(0, 1, resolve_device(config.device))
        built = distillation.built
        self.built, self.config, self.ranks = built, config, ranks
        self._targets_of, self._updates = targets_of, updates
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.distillation = distillation.to(ranks.device)
        self.model: nn.Module = distillation.model.to(memory_format=layout)
        self._normalize = Normalize(built.mean, built.std, config.channels_last).to(ranks.device)
        try:
            self.optimizer = create_optimizer_v2(
                # timm queries a model for its layers; one with adapters beside it has none to return.
                distillation if distillation.adapts else self.model,
                opt=config.opt,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                **config.opt_kwargs,
            )
            self._schedule, _ = create_scheduler_v2(
                self.optimizer,
                sched=config.sched,
                num_epochs=config.epochs,
                warmup_epochs=config.warmup,  # type: ignore[arg-type]
                warmup_lr=config.warmup_lr,
                min_lr=config.min_lr,
                decay_epochs=config.decay_epochs,
                decay_milestones=list(config.decay_milestones),
                decay_rate=config.decay_rate,
                step_on_epochs=False,
                updates_per_epoch=updates,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as e:
            raise TrainingError(
                f"optimizer or schedule can't be made: {e}", where=f"{config.opt}, {config.sched}"
            ) from e
        self.ema = (
            ModelEmaV3(self.model, config.model_ema_decay, use_warmup=config.model_ema_warmup)
            if config.model_ema
            else None
        )
        self._dtype: torch.dtype = getattr(torch, config.amp_dtype)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self._dtype == torch.float16)
        self._forward: nn.Module = distillation
        if ranks.world > 1:
            own = [ranks.device] if ranks.device.type == "cuda" else None
            self._forward = DistributedDataParallel(distillation, device_ids=own)

    @property
    def averaged(self) -> nn.Module:
        """The weights to evaluate and keep: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """Learning rate of the last step (of the first group of parameters)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def __call__(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Train on this process's part of a batch.

        Args:
            batch: on any device.
            number: of the step in the whole run, from 0; decides learning rate, average and dropout.

        Returns:
            The loss's loss and parts, this process's share (their mean over processes is the batch's).

        Raises:
            TrainingError: the student can't run, or the memory doesn't suffice.
        """
        try:
            return self._train(batch, number)
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            raise self._failure(e, batch.images) from e

    def dry_run(self) -> None:
        """Run the student on two black images, so that one that can't run is refused before anything is written.

        In eval mode and without gradients: neither weights nor batch statistics change.

        Raises:
            TrainingError: it can't run, or its output is no logits.
        """
        size, classes = self.built.input_size, self.built.num_classes
        self.model.eval()
        with torch.no_grad():
            images = torch.zeros(2, size, size, 3, dtype=torch.uint8, device=self.ranks.device)
            logits = self._run(self.model, images)
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if shape != (2, classes):
            raise TrainingError(
                "the student's output is no logits",
                where=self.built.name,
                found=shape,
                allowed=f"(2, {classes}) for two images",
                do="Check --num-classes and --model-kwargs",
            )

    def _train(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        self.distillation.train()
        torch.manual_seed(stable_seed("step", self.config.seed, number, self.ranks.rank))
        self._schedule.step_update(number)
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.ranks.device, non_blocking=True)
        targets = None if self._targets_of is None else self._targets_of(batch)
        epoch = number / self._updates
        context = Context(batch.global_rows, batch.global_labelled, self.ranks.world, epoch, self.config.epochs)
        images = _at_least_two(batch.images)
        parts = self._run(self._forward, images, batch.erased, len(batch), batch.ground_truth, targets, context)
        self.scaler.scale(parts["loss"]).backward()
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.distillation.parameters(), self.config.clip_grad)
        try:
            self.scaler.step(self.optimizer)
        except Exception as e:  # of what a checkpoint kept of it, too
            if _out_of_memory(e):
                raise
            raise TrainingError(
                f"the optimizer can't step: {type(e).__name__}: {first_line(e)}",
                where=self.config.opt,
                do="Check train.opt and train.opt_kwargs; if it was resumed, choose another --out",
            ) from e
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=number + 1)
        return {name: part.detach() for name, part in parts.items()}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, C) of the weights to evaluate, for uint8 (n, S, S, 3) on the device. Sets eval mode."""
        model = self.averaged
        if model.training:
            model.eval()
        logits: torch.Tensor = self._run(model, images).float()
        return logits if self.built.logit_scale is None else standardised(logits, self.built.logit_scale)

    def _run(self, model: nn.Module, images: torch.Tensor, erased: Erased | None = None, *more: Any) -> Any:
        try:
            with self._autocast():
                return model(self._normalize(images, erased), *more)
        except KdpipeError:
            raise
        except Exception as e:  # each layer raises what it likes; the user's settings caused it
            raise self._failure(e, images) from e

    def _failure(self, error: Exception, images: torch.Tensor) -> TrainingError:
        found = f"{len(images)} images of {images.shape[1]} pixels"
        if _out_of_memory(error):
            return TrainingError(
                f"out of memory: {first_line(error)}",
                where=self.built.name,
                found=found,
                do=f"Lower --batch-size, now {self.config.batch_size}, or use --amp-dtype bfloat16",
            )
        return TrainingError(
            f"the student can't run: {type(error).__name__}: {first_line(error)}",
            where=self.built.name,
            found=found,
            do="Check --input-size and --model-kwargs",
        )

    def _autocast(self) -> Any:
        return torch.autocast(self.ranks.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)


def build_student(config: ModelConfig, train: TrainConfig, num_classes: int | None = None) -> ModelSpec:
    """The student as it starts: the same weights for the same seed, whatever was drawn before."""
    torch.manual_seed(stable_seed("weights", train.seed))
    extra = {"drop_path_rate": train.drop_path} if train.drop_path else None
    return build(config, num_classes=num_classes, extra=extra)


def stable_seed(*name: Any) -> int:
    """63 bits that belong to a name, in every process and release."""
    return int(fingerprint(list(name))[:16], 16) >> 1


def parameter_names(distillation: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the optimizer's own order, which is that of its state's numbers."""
    names = {id(p): n for n, p in distillation.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _out_of_memory(error: Exception) -> bool:
    # On the CPU it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _at_least_two(images: torch.Tensor) -> torch.Tensor:
    """Batch statistics need two rows: repeat one, or invent both where there is none. The loss skips them."""
    if len(images) >= 2:
        return images
    if len(images) == 1:
        return images.expand(2, *images.shape[1:])
    return images.new_zeros(2, *images.shape[1:])
