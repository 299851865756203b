"""Teachers of several kinds, random and small, that share nothing but their last stage being one."""

from typing import Any

import torch
from torch import nn

from kdpipe.models import ModelConfig, ModelSpec, weights_digest
from kdpipe.models.build import build
from kdpipe.teacher import Tail, load_tail, tail_parts

CLASSES = 10
_FOUR = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 6), "embed_dim": 24, "img_size": 64, "window_size": 2}
# Model, its arguments, side of its images; what their last stages are, and the norms behind them.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 64),
    "slak": ("slak_nano", {}, 32),
    "slak-wide": ("slak_tiny", {"depths": (1, 1, 1, 1), "kernel_sizes": (13, 13, 13, 13), "ls_init_value": 1.0}, 64),
    "unireplknet": ("unireplknet_a", {"depths": (1, 1, 1, 1)}, 64),
    "replknet": ("replknet_31b", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 64),
    "swin": ("swin_tiny_patch4_window7_224", _FOUR, 64),
    "swinv2": ("swinv2_tiny_window8_256", _FOUR, 64),
    "resnet": ("resnet10t", {"channels": (8, 16, 24, 32)}, 64),
}


def network(name: str, seed: int = 0) -> ModelSpec:
    """In eval mode; weights of its own, and batch statistics that do something."""
    model, kwargs, size = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build(ModelConfig(model=model, model_kwargs=kwargs, num_classes=CLASSES, input_size=size))
        for module in built.module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.bias, std=0.2)
    built.module.eval()
    return built


def images(built: ModelSpec, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, built.input_size, built.input_size, generator=generator)


def parts_of(built: ModelSpec, count: int = 6) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return tail_parts(built.module, built, images(built, count), weights_digest(built.module))


def tail_of(built: ModelSpec) -> Tail:
    return load_tail(*parts_of(built), "cache/tail")
