"""What timm expects of an image model, for networks of a stem, stages and a head."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, NormMlpClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import nn

# How timm takes the maps out of such a network for `features_only`. timm writes into what it is given: pass a copy.
FEATURES = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}


def pretrained_cfg(**changes: Any) -> dict[str, Any]:
    """A timm pretrained_cfg: ImageNet-1k at 224 pixels, centre crop of 256, unless changed by `changes`.

    Images are squashed rather than cropped from 384 pixels on, as the papers evaluate.
    """
    side = changes.get("input_size", (3, 224, 224))[-1]
    crop = {"crop_pct": 1.0, "crop_mode": "squash"} if side >= 384 else {"crop_pct": 0.875}
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head.fc",
        **crop,
        **changes,
    }


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Of each stage's blocks: from 0 for the first of the network to `rate` for the last."""
    rates = torch.linspace(0, rate, sum(depths), device="cpu").split(list(depths))
    return [stage.tolist() for stage in rates]


class Stage(nn.Module):
    """A downsampling and the blocks at its resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) of the stage before -> (N, D, h, w)."""
        x = self.downsample(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class StagedNet(nn.Module):
    """Stem of stride 4, stages, a norm of the last map (or Identity) and a timm head with `fc`.

    Args:
        stem, stages, norm_pre, head: the parts, in the order in which they run.
        dims: channels of each stage's map; from the second stage on each halves the side.
        num_classes, in_chans: as timm's.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm_pre: nn.Module,
        head: ClassifierHead | NormMlpClassifierHead,
        dims: Sequence[int],
        num_classes: int,
        in_chans: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm_pre = norm_pre
        self.head = head

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier sees; twice `num_features` where two poolings are concatenated."""
        return self.num_features * int(self.head.global_pool.feat_mult())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by parameter name, for layer-wise learning rates."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm_pre", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass, to save memory."""
        for stage in self.stages:
            cast(Stage, stage).grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return cast(nn.Module, self.head.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of `num_classes` rows; none at 0."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, in_chans, H, W) -> the final map (N, dims[-1], H / 32, W / 32), after `norm_pre`."""
        return self.norm_pre(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The final map -> logits (N, num_classes), or with `pre_logits` what the classifier sees (N, dims[-1])."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages in `indices` (the last n; all), beside the final map unless `intermediates_only`."""
        if output_fmt != "NCHW":
            raise ValueError(f"maps are NCHW, not {output_fmt}")
        take, last = feature_take_indices(len(self.stages), indices)
        final = len(self.stages) - 1
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                maps.append(self.norm_pre(x) if norm and i == final else x)
        return maps if intermediates_only else (self.norm_pre(x) if i == final else x, maps)
