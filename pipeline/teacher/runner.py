"""A network on its device, each layer computed in the way that a plan says."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from pipeline.errors import TeacherError
from pipeline.models import first_line
from pipeline.teacher.plan import COMPILED, TOLERANCE, WHOLE, Plan, apply, compiled, noise, on_cpu, require_same
from pipeline.teacher.search import interleaved, search

# Compiling takes this many seconds or more, and every worker does it: it is tried where that hardly matters.
_COMPILING = 60.0
# Images on which two ways are compared.
_COMPARED = 2
# What to do about a plan that doesn't work; the search's own plans only fail where there is a bug.
_PLAINLY = "Pass --set teacher.form=merged"
# Of a compiled network, relative to the largest logit: it rounds elsewhere.
_TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Run = Callable[[torch.Tensor], torch.Tensor]


class Runner:
    """Runs a network; at first every layer plainly.

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
        self._run: Run = model
        self.plan: Plan = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of normalised images (N, 3, S, S) on the device; it raises whatever a layer does."""
        return self._with(self._run, x)

    @torch.inference_mode()
    def search(self, seconds: float) -> None:
        """Find the fastest way of each layer, and of the whole network, and follow it.

        Args:
            seconds: to spend; compiling, which can't be stopped, may take more.

        Raises:
            TeacherError: the network says something else then.
        """
        until, x = time.monotonic() + seconds, self._images(self._batch)
        with self._autocast():
            plan = search(self._model, x, seconds, channels_last=self._channels_last)
        self.obey(plan)
        if until - time.monotonic() < _COMPILING:
            return
        try:
            self.obey({**plan, WHOLE: COMPILED})
        except TeacherError:  # no compiler here, or a network that it can't take
            self.obey(plan)
            return
        runs = {name: partial(self._with, run, x) for name, run in (("plain", self._model), (COMPILED, self._run))}
        times = interleaved(runs, self._device)
        if times[COMPILED] > times["plain"]:
            self.obey(plan)

    @torch.inference_mode()
    def obey(self, plan: Plan) -> None:
        """Compute each layer as a plan says, once the outcome was compared with the plain network's.

        Raises:
            TeacherError: it can't be computed like that, or says something else.
        """
        if plan == self.plan:
            return
        x, said = noise(_COMPARED, self._size), []
        for one in ({}, plan):
            apply(self._model, one, self._images(1), self._name, channels_last=self._channels_last)
            said.append(on_cpu(self._model, x))
        require_same(said[1], said[0], self._name, "computed in other ways, the model says something else", _PLAINLY)
        self._run = self._compiled() if plan.get(WHOLE) == COMPILED else self._model
        self.plan = plan

    def _compiled(self) -> Run:
        run, x = compiled(self._model), self._images(self._batch)
        try:
            found, expected = (self._with(one, x).float().cpu() for one in (run, self._model))
        except Exception as e:
            what = f"the network can't be compiled here: {type(e).__name__}: {first_line(e)}"
            raise TeacherError(what, where=self._name, do=_PLAINLY) from e
        tolerance = _TOLERANCES[self._amp_dtype]
        if self._device.type == "cuda" and self._amp_dtype == torch.float32:
            tolerance = _TOLERANCES[torch.float16]  # as TF32 rounds, where it is on
        require_same(found, expected, self._name, "compiled, the model says something else", _PLAINLY, tolerance)
        return run

    def _with(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return run(x)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype != torch.float32)

    def _images(self, count: int) -> torch.Tensor:
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return noise(count, self._size).to(self._device).contiguous(memory_format=layout)
