"""One frozen network on a device, in the form in which it is run, with its own normalisation."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig, ModelSpec, is_factory, weights_digest
from kdpipe.models.build import build
from kdpipe.teacher.config import Form, TeacherConfig
from kdpipe.teacher.outputs import TeacherOutput, WithFeatures
from kdpipe.teacher.reparameterisation import check_merged, merge
from kdpipe.teacher.runner import Runner
from kdpipe.views import Erased, Normalize


class Network:
    """A teacher, or one of several.

    Args:
        config: which model.
        how: how it is run.
        device: where.
        num_classes: used when neither the config nor the weights give it.

    Attributes:
        built: the module as it is run.
        weights: digest of the weights as they were loaded, whatever the form.
        form: eager where there is nothing to merge.
        runner: what runs it.

    Raises:
        TeacherError: no weights, or a model that can't be built or run here.
    """

    def __init__(
        self, config: ModelConfig, how: TeacherConfig, device: torch.device, num_classes: int | None = None
    ) -> None:
        self._config, self._num_classes = config, num_classes
        named = config.model is not None and is_factory(config.model)
        if not (config.weights or config.pretrained or named):
            raise TeacherError(
                "teacher has no weights: it would teach noise",
                where=config.model,
                do="Pass --weights FILE, or --pretrained for timm's published ones",
            )
        built = self._build()
        published = (getattr(built.module, "pretrained_cfg", None) or {}).get("num_classes")
        if (
            config.pretrained
            and not (config.weights or config.class_map)
            and published not in (None, built.num_classes)
        ):
            raise TeacherError(
                "the published weights have another number of classes: timm would put a random head on them",
                where=config.model,
                found=published,
                allowed=built.num_classes,
                do="Fine-tune it first (kdpipe train-student --pretrained --loss none), or correct the class count",
            )
        self.weights = weights_digest(built.module)
        plain = built.module.eval().requires_grad_(False)
        copied = None if how.form == "eager" else merge(plain, built.name, built.input_size)
        self.form: Form = "eager" if copied is None else "merged"
        # Kept until it has been compared with what is run.
        self._unchecked = None if copied is None else plain
        layout = torch.channels_last if how.channels_last else torch.contiguous_format
        self._model: nn.Module = (copied or plain).to(device, memory_format=layout)  # type: ignore[call-overload]
        self.built: ModelSpec = replace(built, module=self._model)
        self._normalize = Normalize(built.mean, built.std, how.channels_last).to(device)
        dtype = getattr(torch, how.amp_dtype)
        self.runner = Runner(
            self._model,
            built.name,
            batch=how.batch_size,
            size=built.input_size,
            device=device,
            amp_dtype=dtype,
            channels_last=how.channels_last,
        )

    def identity(self) -> dict[str, Any]:
        """What determines the network's output.

        What only the weights' file contains is here too: rows that a class map takes are in the digest of the weights,
        logits that are standardised are not.
        """
        b = self.built
        # Left out where there is none, as caches have it that were made before.
        scale = {} if b.logit_scale is None else {"logit_scale": b.logit_scale}
        return scale | {
            "model": b.name,
            "model_kwargs": b.kwargs,
            "weights": self.weights,
            "num_classes": b.num_classes,
            "input_size": b.input_size,
            "mean": list(b.mean),
            "std": list(b.std),
        }

    def _build(self) -> ModelSpec:
        return build(self._config, num_classes=self._num_classes)

    def original(self) -> nn.Module:
        """The network on the CPU in eval mode as it was built, whatever the form: another copy of it, or built again.

        Raises:
            TeacherError: built again it has other weights.
        """
        if self._unchecked is not None:
            return self._unchecked
        module = self._build().module.eval().requires_grad_(False)
        again = weights_digest(module)
        if again != self.weights:
            raise TeacherError(
                "built once more, the model has other weights",
                where=self.built.name,
                found=again,
                allowed=self.weights,
                do="Give it --weights, or a factory that always returns the same ones",
            )
        return module

    def set_features(self, features: tuple[str, ...]) -> None:
        """Give these features beside the logits; see `Runner.give`."""
        before = self.runner.features
        self.runner.set_features(features)
        if set(features) - set(before) and self.form == "merged" and self._unchecked is None:
            # It was compared without them.
            self._unchecked = self.original()

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, S, S, 3) on the device -> what the network is fed, float32 (N, 3, S, S)."""
        return self._normalize(images, None)

    def __call__(self, images: torch.Tensor, erased: Erased | None) -> TeacherOutput:
        """Its outputs, in float32, for uint8 (N, S, S, 3) on the device, erased as given by `erased`.

        Raises:
            TeacherError: it can't run, or a merged form isn't the network that it was made from.
        """
        x = self._normalize(images, erased)
        try:
            output = self.runner(x)
        except Exception as e:
            # Whatever a layer raises, it is about how the user configured this model.
            room = (
                "Lower --batch-size"
                if isinstance(e, torch.OutOfMemoryError)
                else "Check --input-size and --model-kwargs"
            )
            reason = str(e).split("\n", maxsplit=1)[0][:200]
            raise TeacherError(
                f"the model can't run: {type(e).__name__}: {reason}",
                where=self.built.name,
                found=f"{len(images)} views of {images.shape[1]} pixels",
                do=room,
            ) from e
        logits = output.logits
        if logits.ndim != 2 or logits.shape[1] != self.built.num_classes:
            raise TeacherError(
                "the model's output is no logits",
                where=self.built.name,
                found=tuple(logits.shape),
                allowed=(len(images), self.built.num_classes),
            )
        if self._unchecked is not None:
            plain, run = (WithFeatures(one, self.runner.features) for one in (self._unchecked, self._model))
            check_merged(plain, run, x, self.built.name)
            self._unchecked = None
        return TeacherOutput(**{name: part.float() for name, part in output.parts().items()})
