"""The run: epochs of steps, an evaluation and a checkpoint after each, and going on from one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from kdpipe.errors import CheckpointError
from kdpipe.evaluation import Metrics, evaluate
from kdpipe.models import METADATA_KEY
from kdpipe.trainer.checkpoint import check_position
from kdpipe.trainer.files import BEST, CHECKPOINT, LAST, SUMMARY, RunFolder
from kdpipe.trainer.loggers import LiveLog
from kdpipe.trainer.losses import LossLog
from kdpipe.trainer.prepare import Log, TrainingPlan
from kdpipe.trainer.state import pack, require_same, separate, unpack


@dataclass(frozen=True)
class TrainingProgress:
    """One step done, for progress bars. Counts are over all processes, `epoch` and `step` from 1.

    Attributes:
        samples: seen in the whole run, of `total`; `before` of them before this process went on with it.
        loss: of the newest step fetched from the device.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    before: int
    samples: int
    total: int
    loss: float | None


_ASK_EVERY = 10  # steps

OnStep = Callable[[TrainingProgress], None]


class TrainingLoop:
    """What changes while training; all of it is in a checkpoint."""

    def __init__(
        self, plan: TrainingPlan, folder: RunFolder, live: LiveLog, log: Log, on_step: OnStep, stop: Callable[[], bool]
    ) -> None:
        self.plan, self.folder, self.live = plan, folder, live
        self.log, self.on_step, self._stop = log, on_step, stop
        self.epochs = plan.job.train.epochs
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the epoch that runs
        self.number = 0  # finished steps
        self.losses = LossLog(plan.ranks)
        self.best: dict[str, Any] | None = None
        self.line: dict[str, Any] = {}
        self.metrics_bytes = 0
        self.before = 0
        self._began, self._earlier = time.monotonic(), 0.0
        self.training_seconds, self.images = 0.0, 0

    @property
    def seconds(self) -> float:
        """Of the whole run, evaluation and interrupted parts included as far as they were saved."""
        return self._earlier + time.monotonic() - self._began

    def fit(self, resuming: bool) -> dict[str, Any] | None:
        """Train to the end; see `train`."""
        if resuming:
            self._restore()
            self.live.update()
        else:
            # Before the first step, so that the folder belongs to this job from now on.
            self._save()
        if self.epoch == self.epochs:
            self.log(f"{self.folder} is finished: {self.epochs} epochs, nothing to do")
            return self._kept_summary() or self._summarise()
        while self.epoch < self.epochs:
            seconds, images = self.training_seconds, self.images
            if not self._train_epoch():
                return None
            self._end_epoch((self.images - images) / max(1e-9, self.training_seconds - seconds))
            if self.epoch < self.epochs and self._stopped():
                self._save()
                return None
        return self._summarise()

    def _train_epoch(self) -> bool:
        """The rest of the epoch; False if it was stopped on the way, with a checkpoint made."""
        plan, steps = self.plan, self.plan.loader.steps
        every = plan.job.train.checkpoint_steps
        mark = time.monotonic()
        for batch in plan.loader.epoch(self.epoch, self.step):
            parts = plan.step(batch, self.number)
            self.step, self.number = self.step + 1, self.number + 1
            self.losses.add(self.epoch, self.step, parts)
            self.images += batch.global_rows
            self.training_seconds += time.monotonic() - mark
            self.on_step(self._progress())
            if self.step < steps and self._stopped():
                self._save()
                return False
            if every and self.step % every == 0 and self.step < steps:
                self._save()
            mark = time.monotonic()
        self.losses.fetch(self.epoch)
        self.training_seconds += time.monotonic() - mark
        return True

    def _stopped(self) -> bool:
        # Agreeing makes several processes wait for each other, so they don't do it at every step.
        ranks = self.plan.ranks
        return (ranks.world == 1 or self.step % _ASK_EVERY == 0) and ranks.agree(self._stop())

    def _seen(self) -> int:
        samples = len(self.plan.loader)
        return self.epoch * samples + min(self.step * self.plan.job.train.batch_size, samples)

    def _progress(self) -> TrainingProgress:
        loader = self.plan.loader
        return TrainingProgress(
            epoch=self.epoch + 1,
            epochs=self.epochs,
            step=self.step,
            steps=loader.steps,
            before=self.before,
            samples=self._seen(),
            total=self.epochs * len(loader),
            loss=self.losses.latest.get("loss"),
        )

    def _end_epoch(self, speed: float) -> None:
        last = self.epoch + 1 == self.epochs
        scores = self._evaluate() if last or (self.epoch + 1) % self.plan.job.train.eval_every == 0 else None
        self.epoch, self.step = self.epoch + 1, 0
        self.line = {
            "epoch": self.epoch,
            "steps": self.number,
            "lr": self.plan.step.lr,
            "train": self.losses.means(),
            "validation": scores,
        }
        top1 = scores["top1"] if scores else None
        if top1 is not None:
            better = self.best is None or top1 > self.best["validation"]["top1"]
        else:
            better = last and self.best is None
        if better:
            self.best = {"epoch": self.epoch, "validation": scores}
        due = last or self.epoch % self.plan.job.train.checkpoint_epochs == 0
        timing = {"seconds": round(self.seconds, 3), "images_per_second": round(speed, 1)}
        if self.plan.ranks.first:
            self.metrics_bytes = self.folder.append_metrics({**self.line, "timing": timing})
            self.live.update()
            names = [name for name, wanted in ((LAST, due), (BEST, better)) if wanted]
            if names:
                weights, header = self._weights(scores)
                for name in names:
                    self.folder.write_tensors(name, weights, METADATA_KEY, header)
        if due:
            self._save()
        self.log(_describe(self.line, self.epochs, speed))

    def _evaluate(self) -> Metrics | None:
        plan = self.plan
        if plan.validation is None:
            return None
        plan.ranks.share_buffers(plan.step.averaged)
        batches = plan.validation.epoch(0)
        return evaluate(plan.step.predict, batches, plan.built.num_classes, plan.ranks.device)

    def _weights(self, scores: Metrics | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        job = self.plan.job
        kept = self.plan.step.distillation.unwrapped(self.plan.step.averaged)
        header = {
            **kept.metadata(),
            "views": job.views.model_dump(mode="json"),
            **({} if job.index.classes is None else {"classes": job.index.classes}),
            "loss": job.loss.used(),
            "epoch": self.epoch,
            "evaluation": scores,
        }
        return separate(dict(kept.module.state_dict())), header

    def _save(self) -> None:
        # Also so that no checkpoint is made of weights that a bad loss has spoilt.
        self.losses.fetch(self.epoch)
        if not self.plan.ranks.first:
            return
        tensors, tree = pack(self.plan.step)
        state = {
            "config": self.plan.identity,
            "epoch": self.epoch,
            "step": self.step,
            "number": self.number,
            "losses": self.losses.state(),
            "best": self.best,
            "line": self.line,
            "metrics_bytes": self.metrics_bytes,
            "timing": {"seconds": self.seconds, "training": self.training_seconds, "images": self.images},
            "optimizer": tree,
            "versions": {name: version(name) for name in ("kdpipe", "torch", "timm")},
        }
        self.folder.write_checkpoint(tensors, state)

    def _restore(self) -> None:
        tensors, state = self.folder.read_checkpoint()
        require_same(self.folder, self.plan.identity, state["config"])
        where = self.folder.path / CHECKPOINT
        check_position(state, self.epochs, self.plan.loader.steps, where)
        unpack(self.plan.step, tensors, state["optimizer"], where)
        self.epoch, self.step, self.number = state["epoch"], state["step"], state["number"]
        self.losses.restore(**state["losses"])
        self.best, self.line, self.metrics_bytes = state["best"], state["line"], state["metrics_bytes"]
        timing = state["timing"]
        self._earlier, self.training_seconds, self.images = (timing[k] for k in ("seconds", "training", "images"))
        self.before = self._seen()
        if self.plan.ranks.first:
            self.folder.cut_metrics(self.metrics_bytes)
        if self.epoch < self.epochs:
            self.log(f"resuming at epoch {self.epoch + 1} step {self.step + 1} of {self.folder}")

    def _kept_summary(self) -> dict[str, Any] | None:
        """That of the finished run, as it was written; None if it was not."""
        found, expected = self.folder.read_json(SUMMARY), self._summary()
        if found is not None and any(found.get(name) != expected[name] for name in ("student", "epochs", "best")):
            raise CheckpointError(
                "not the summary of this run's checkpoint",
                where=self.folder.path / SUMMARY,
                do="Delete it, and repeat the command: it is written again from the checkpoint",
            )
        return found

    def _summary(self) -> dict[str, Any]:
        config = self.plan.identity
        return {
            "student": config["student"]["model"],
            "loss": config["loss"],
            "caches": [cache["identity"] for cache in config["caches"]],
            "pixels": self.plan.pixels,
            "epochs": self.epochs,
            "steps": self.number,
            "samples": len(self.plan.loader),
            "final": {name: self.line[name] for name in ("train", "validation")},
            "best": self.best,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / max(1e-9, self.training_seconds), 1),
            "config": config,
        }

    def _summarise(self) -> dict[str, Any]:
        summary = self._summary()
        if self.plan.ranks.first:
            self.folder.write_json(SUMMARY, summary)
        return summary


def _describe(line: dict[str, Any], epochs: int, speed: float) -> str:
    parts = [f"epoch {line['epoch']}/{epochs}", *(f"{k} {v:.4f}" for k, v in line["train"].items())]
    if line["validation"] and line["validation"]["top1"] is not None:
        parts.append(f"top1 {100 * line['validation']['top1']:.2f} %")
    return "  ".join([*parts, f"lr {line['lr']:.3g}", f"{speed:.0f} img/s"])
