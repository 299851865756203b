"""Views in, logits out: one network, or several whose mean is taken."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdpipe._util.fingerprint import fingerprint
from kdpipe.errors import TeacherError
from kdpipe.models import ModelSpec
from kdpipe.teacher.config import KernelPlan, TeacherConfig
from kdpipe.teacher.device import resolve_device
from kdpipe.teacher.ensemble import joined, load
from kdpipe.teacher.network import Network
from kdpipe.teacher.outputs import FEATURES, TeacherOutput, without
from kdpipe.views import Erased

# Seconds of the search for the fastest ways, as a share of what the run's batches take; with less than the least of
# them a job is run as it is.
_SHARE, _LEAST = 0.02, 0.5


class Teacher:
    """A frozen model on a device, or an ensemble with one output: views in, TeacherOutput out.

    Args:
        config: which models, and how they are run.
        num_classes: used when neither the config nor the weights give it.

    Attributes:
        built: the module as it is run, and how it is fed. Of an ensemble: all modules, the names joined, and no
            mean and std, because each member has its own.
        weights: digest of the weights; of an ensemble, of its members' digests.

    Raises:
        TeacherError: no weights, a model that can't be built or run here, or members that don't go together.
    """

    def __init__(self, config: TeacherConfig, num_classes: int | None = None) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.threads = config.threads or torch.get_num_threads()
        self._networks = load(config, self.device, num_classes)
        first = self._networks[0]
        self.built: ModelSpec = joined(self._networks) if config.members else first.built
        self.weights = fingerprint([n.weights for n in self._networks]) if config.members else first.weights
        if config.layers:
            self.apply_plan(config.layers)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.built.num_classes

    def identity(self) -> dict[str, Any]:
        """What determines the teacher's output; a cache and its teacher must agree on all of it."""
        if not self.config.members:
            return self._networks[0].identity()
        return {
            "model": self.built.name,
            "members": [network.identity() for network in self._networks],
            "combine": self.config.combine,
            "weights": self.weights,
            "num_classes": self.num_classes,
            "input_size": self.built.input_size,
        }

    def numerics(self) -> dict[str, Any]:
        """What may change the output within rounding; one segment of a cache is made with one numerics."""
        c = self.config
        gpu = self.device.type == "cuda"
        return {
            "form": "merged" if any(network.form == "merged" for network in self._networks) else "eager",
            "layers": self.layers,
            "batch_size": c.batch_size,
            "amp_dtype": c.amp_dtype,
            "channels_last": c.channels_last,
            "device": self.device.type,
            "threads": None if gpu else self.threads,
            "tf32": gpu and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32),
        }

    @property
    def layers(self) -> KernelPlan:
        """The way of each layer that isn't plain, by its name in `built.module`; of the whole by an empty name."""
        return {
            ".".join(part for part in (prefix, name) if part): way
            for prefix, network in self._named()
            for name, way in network.runner.plan.items()
        }

    def apply_plan(self, layers: KernelPlan) -> None:
        """Compute the layers in these ways, as another teacher did that had these `layers`; the others plainly.

        Raises:
            TeacherError: a layer isn't there, or can't be computed like that, or the outcome isn't the same.
        """
        self._use_threads()
        left = dict(layers)
        for prefix, network in self._named():
            of_it = [at for at in left if not prefix or at.partition(".")[0] == prefix]
            network.runner.apply_plan({at[len(prefix) :].lstrip("."): left.pop(at) for at in of_it})
        if left:
            at, way = next(iter(left.items()))
            raise TeacherError("no member has such a layer", where=f"teacher.layers: {at}", found=way)

    @property
    def features(self) -> tuple[str, ...]:
        """Given beside the logits."""
        return self._networks[0].runner.features

    def set_features(self, features: Sequence[str]) -> None:
        """From now on, give these features beside the logits: `pooled`, `map`.

        They come from the forward that gives the logits, in whatever form the network is run; that the logits are
        those of the network's own forward is checked here, and that a merged form has the same features with the next
        batch. A compiled network is compiled again, features and all.

        Raises:
            TeacherError: several models have no feature in common; or the model has none, or its output differs
                on the way through them.
        """
        unknown = [feature for feature in features if feature not in FEATURES]
        if unknown:
            raise TeacherError("no such feature", found=unknown[0], allowed=", ".join(FEATURES))
        requested = tuple(feature for feature in FEATURES if feature in features)
        if requested and self.config.members:
            raise TeacherError(
                "several models as one have no features of their own",
                where=self.built.name,
                found=", ".join(requested),
                do=without(*requested),
            )
        self._use_threads()
        for network in self._networks:
            network.set_features(requested)

    def shapes(self, features: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Of one view's features, by name: (D,) of pooled, (h, w, D) of map, as tokens lie in a cache.

        Raises:
            TeacherError: as `give`.
        """
        before, size = self.features, self.built.input_size
        self.set_features(features)
        try:
            output = self(np.zeros((1, size, size, 3), np.uint8))
        finally:
            self.set_features(before)
        return shapes_of(output)

    def original(self) -> nn.Module:
        """The network as it was built, on the CPU; see `Network.original`.

        Raises:
            TeacherError: there are several, or built again it has other weights.
        """
        if self.config.members:
            # Of the parts only the last stage is requested by itself: the classifier comes with targets.pooled.
            what = "several models as one have no last stage or classifier of their own"
            raise TeacherError(what, where=self.built.name, do=without("tail"))
        return self._networks[0].original()

    def normalized(self, images: np.ndarray) -> torch.Tensor:
        """Views, uint8 (N, S, S, 3) -> what a single network is fed, float32 (N, 3, S, S), on the CPU."""
        return self._networks[0].normalized(torch.from_numpy(images).to(self.device)).cpu()

    def search(self, batches: int, at_most: float = 180.0) -> None:
        """Search for the fastest kernels if the config requests them: in a small part of the time of so many batches.

        The teacher has run before: the first batch takes longer than others.

        Args:
            batches: to come.
            at_most: seconds, however many there are; compiling is only tried with a minute of them.

        Raises:
            TeacherError: the model can't run.
        """
        if self.config.form != "fastest" or self.config.layers is not None:
            return
        size = self.built.input_size
        self._use_threads()
        images = np.zeros((self.config.batch_size, size, size, 3), np.uint8)
        began = time.monotonic()
        float(self(images).logits.sum())  # the device has done it when the number is here
        seconds = min(at_most, _SHARE * batches * (time.monotonic() - began))
        if seconds < _LEAST:
            return
        for network in self._networks:
            network.runner.search(seconds / len(self._networks))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, erased: Erased | None = None) -> TeacherOutput:
        """Run on views, uint8 (N, S, S, 3), erased as given by `erased`, in padded batches of `batch_size`.

        Padding repeats the first view, so that a sample's output depends neither on how many are left nor on
        what the buffer held before.
        """
        self._use_threads()
        size = self.config.batch_size
        outputs = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            rows = len(part)
            if rows < size:
                part = np.concatenate([part, np.broadcast_to(part[:1], (size - rows, *part.shape[1:]))])
            boxes = None if erased is None else erased[start : start + size]
            output = self._forward(torch.from_numpy(part), boxes).parts()
            outputs.append(TeacherOutput(**{name: x[:rows] for name, x in output.items()}))
        return TeacherOutput.joined(outputs)

    def _named(self) -> list[tuple[str, Network]]:
        """The networks with their names in `built.module`."""
        if not self.config.members:
            return [("", self._networks[0])]
        return [(str(at), network) for at, network in enumerate(self._networks)]

    def _use_threads(self) -> None:
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def _forward(self, images: torch.Tensor, erased: Erased | None) -> TeacherOutput:
        images = images.to(self.device, non_blocking=True)
        if not self.config.members:
            return self._networks[0](images, erased)
        outputs = (network(images, erased).logits for network in self._networks)
        if self.config.combine == "log-probs":
            outputs = (torch.log_softmax(logits, dim=1) for logits in outputs)
        # One after the other, in their order: only their sum is kept.
        total = next(outputs)
        for logits in outputs:
            total = total + logits
        return TeacherOutput(total / len(self._networks))


def shapes_of(output: TeacherOutput) -> dict[str, tuple[int, ...]]:
    """Of a view's features as tokens lie in a cache: (D,) of pooled, (h, w, D) of map."""
    return {n: tuple(x.movedim(1, -1).shape[1:]) for n, x in output.parts().items() if n != "logits"}
