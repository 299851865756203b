"""A network on its device, each layer computed by the kernel of a plan, with the requested features."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import first_line
from kdpipe.teacher.outputs import TeacherOutput, WithFeatures, with_features, without
from kdpipe.teacher.tune.plan import (
    COMPILED,
    OTHER,
    TOLERANCE,
    WHOLE,
    KernelPlan,
    apply,
    compiled,
    noise,
    on_cpu,
    require_same,
    restore,
)
from kdpipe.teacher.tune.search import interleaved, search

# Compiling takes this many seconds or more, and every worker does it: it is tried where that hardly matters.
_COMPILING = 60.0
# Images on which two ways are compared.
_COMPARED = 2
_OTHERWISE = "computed in other ways, the model's output differs"
_FEATURES = "with its features, the model's output differs: forward isn't forward_head of forward_features"
# Of a compiled network, relative to the largest value: it rounds elsewhere.
_TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Run = Callable[[torch.Tensor], TeacherOutput]


class Runner:
    """Runs a network; at first every layer plainly, and for its logits alone.

    Args:
        model: in eval mode, on `device`.
        name: for errors.
        batch: images that are run at a time.
        size: their side.
        device: where it is.
        amp_dtype: autocast's; float32 for none.
        channels_last: the format of the images, and of the model.

    Attributes:
        plan: what is followed now.
        features: given beside the logits.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        *,
        batch: int,
        size: int,
        device: torch.device,
        amp_dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self._model, self._name, self._batch, self._size = model, name, batch, size
        self._device, self._amp_dtype, self._channels_last = device, amp_dtype, channels_last
        self._with_features = WithFeatures(model)
        self._run: Run = self._with_features
        self.plan: KernelPlan = {}
        self._plainly: TeacherOutput | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Given beside the logits."""
        return self._with_features.features

    def __call__(self, x: torch.Tensor) -> TeacherOutput:
        """The output for normalised images (N, 3, S, S) on the device; it raises whatever a layer does."""
        return self._with(self._run, x)

    def set_features(self, features: tuple[str, ...]) -> None:
        """Give these features from now on, by a way to the logits that was compared with the network's own.

        Raises:
            TeacherError: the network has no such features, or its output differs that way; then all is as before.
        """
        if features == self.features:
            return
        plan, before = self.plan, self._with_features
        self.apply_plan({})
        x = noise(_COMPARED, self._size)
        try:
            if features:
                # On the CPU, where float32 is float32.
                tried = with_features(self._model, features, self._name, self._images(1))
                with torch.inference_mode():
                    found, expected = on_cpu(tried, x), on_cpu(WithFeatures(self._model), x)
                again = partial(on_cpu, WithFeatures(self._model), x)
                require_same(found, expected, self._name, _FEATURES, without(*features), again=again)
            self._take(WithFeatures(self._model, features))
            self.apply_plan(plan)
        except BaseException:
            self._take(before)
            self.apply_plan(plan)
            raise

    def _take(self, network: WithFeatures) -> None:
        self._with_features = self._run = network
        self.plan, self._plainly = {}, None

    @torch.inference_mode()
    def search(self, seconds: float) -> None:
        """Find the fastest kernel of each layer, and of the whole network, and apply it.

        A network for which that fails, such as for lack of memory, keeps its original kernels: it is for speed alone.

        Args:
            seconds: to spend on timing; compiling, which can't be stopped, and comparing may take more.
        """
        self.apply_plan({})
        until = time.monotonic() + seconds
        plan: KernelPlan = {}
        with suppress(Exception):
            x = self._images(self._batch)
            with self._autocast():
                plan = search(self._model, x, seconds, channels_last=self._channels_last)
            self.apply_plan(plan)
            if until - time.monotonic() >= _COMPILING:
                self._try_compiled(plan, x)

    @torch.inference_mode()
    def apply_plan(self, plan: KernelPlan) -> None:
        """Compute each layer by a kernel plan, once the outcome was compared with the plain network's.

        Raises:
            TeacherError: it can't be computed like that, or its output differs; then the original is run.
        """
        if plan == self.plan:
            return
        try:
            self._follow(plan)
        except BaseException as e:
            restore(self._model)
            self._run, self.plan = self._with_features, {}
            if isinstance(e, TeacherError) or not isinstance(e, Exception):
                raise
            what = f"it can't be computed as given by teacher.layers: {type(e).__name__}: {first_line(e)}"
            raise TeacherError(what, where=self._name, do=OTHER) from e

    def _follow(self, plan: KernelPlan) -> None:
        if plan.get(WHOLE, COMPILED) != COMPILED:
            what = "there is no such way for a whole network"
            raise TeacherError(what, where=self._name, found=plan[WHOLE], allowed=COMPILED, do=OTHER)
        if _layers(plan) != _layers(self.plan):
            restore(self._model)
            x = noise(_COMPARED, self._size)
            if self._plainly is None:
                self._plainly = on_cpu(self._with_features, x)
            apply(self._model, plan, self._images(1), self._name, channels_last=self._channels_last)
            if _layers(plan):
                require_same(on_cpu(self._with_features, x), self._plainly, self._name, _OTHERWISE, OTHER)
        self._run = self._compiled() if WHOLE in plan else self._with_features
        self.plan = plan

    def _try_compiled(self, plan: KernelPlan, x: torch.Tensor) -> None:
        try:
            self.apply_plan({**plan, WHOLE: COMPILED})
        except TeacherError:  # no compiler here, or a network that it can't take
            self.apply_plan(plan)
            return
        runs = {
            name: partial(self._with, run, x) for name, run in (("plain", self._with_features), (COMPILED, self._run))
        }
        times = interleaved(runs, self._device)
        if times.get(COMPILED, math.inf) > times["plain"]:
            self.apply_plan(plan)

    def _compiled(self) -> Run:
        run, x = compiled(self._with_features), self._images(self._batch)
        found, expected = (_here(self._with(one, x)) for one in (run, self._with_features))
        tolerance = _TOLERANCES[self._amp_dtype]
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        if self._device.type == "cuda" and tf32:
            tolerance = max(tolerance, _TOLERANCES[torch.float16])
        require_same(found, expected, self._name, "compiled, the model's output differs", OTHER, tolerance)
        return run

    def _with(self, run: Run, x: torch.Tensor) -> TeacherOutput:
        with self._autocast():
            return run(x)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype != torch.float32)

    def _images(self, count: int) -> torch.Tensor:
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return noise(count, self._size).to(self._device).contiguous(memory_format=layout)


def _here(output: TeacherOutput) -> TeacherOutput:
    return TeacherOutput(**{name: x.float().cpu() for name, x in output.parts().items()})


def _layers(plan: KernelPlan) -> KernelPlan:
    return {at: way for at, way in plan.items() if at != WHOLE}
