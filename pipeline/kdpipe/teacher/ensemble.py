"""The networks that a teacher is made of, and what they must have in common."""

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelSpec
from kdpipe.teacher.config import TeacherConfig
from kdpipe.teacher.network import Network

# What members have in common: of the ModelSpec, what is wrong if they differ, and what to do.
_ALIKE = (
    (
        "num_classes",
        "members have different numbers of classes",
        "Use members of the same classes; a class_map takes some of many",
    ),
    (
        "input_size",
        "members see views of different sizes",
        "Set teacher.input_size for those that don't set their own",
    ),
)


def load(config: TeacherConfig, device: torch.device, num_classes: int | None) -> list[Network]:
    """The networks of an ensemble in their order, or the one that there is.

    Raises:
        TeacherError: one can't be built or run here, or they don't go together; the member is named.
    """
    networks: list[Network] = []
    for at, model in enumerate(config.models()):
        place = f"teacher.members[{at}]"
        try:
            network = Network(model, config, device, num_classes)
        except TeacherError as e:
            if not config.members:
                raise
            where = place if e.where is None else f"{place}: {e.where}"
            raise TeacherError(e.what, where=where, found=e.found, allowed=e.allowed, do=e.do) from e
        networks.append(network)
        for name, what, do in _ALIKE:
            ours, firsts = (getattr(one.built, name) for one in (network, networks[0]))
            if ours != firsts:
                raise TeacherError(what, where=f"{place}: {network.built.name}", found=ours, allowed=firsts, do=do)
    return networks


def joined(networks: list[Network]) -> ModelSpec:
    """All modules, the names joined, and no mean and std, because each member has its own."""
    first = networks[0].built
    return ModelSpec(
        module=nn.ModuleList(network.built.module for network in networks),
        name=" + ".join(network.built.name for network in networks),
        kwargs={},
        num_classes=first.num_classes,
        input_size=first.input_size,
        mean=(),
        std=(),
    )
