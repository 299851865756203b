"""Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019) of pairs of rows inside a block, timm's mode `pair`.

Partners and shares belong to (seed, shard, the keys of the whole block, view): a row is rendered with its
partner without knowing the batch. An odd last row has none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.views.distributions import BETA_WORDS, beta
from kdpipe.views.draws import DrawStage, stream_hash, uniform, words
from kdpipe.views.policy import ViewsConfig

_COINS = 3  # cutmix rather than mixup, and the box's centre


@dataclass(frozen=True)
class Mix:
    """How two views of a pair are mixed; each keeps the share `lam` of itself.

    Attributes:
        lam: share, from 0 to 1; of cutmix what lies outside the box, in fractions and so alike at all sizes.
        box: top, left, bottom, right in fractions of the side; None for mixup.
    """

    lam: float
    box: tuple[float, float, float, float] | None

    def pixels(self, size: int) -> tuple[int, int, int, int] | None:
        """The box at a render size: top, left, bottom, right."""
        if self.box is None:
            return None
        top, left, bottom, right = (round(x * size) for x in self.box)
        return top, left, bottom, right

    def apply(self, first: np.ndarray, second: np.ndarray) -> None:
        """Mix two unmixed views, uint8 (S, S, 3), in place."""
        box = self.pixels(len(first))
        if box is None:
            import cv2

            own = first.copy()
            cv2.addWeighted(first, self.lam, second, 1 - self.lam, 0, dst=first)
            cv2.addWeighted(second, self.lam, own, 1 - self.lam, 0, dst=second)
            return
        top, left, bottom, right = box
        place = np.s_[top:bottom, left:right]
        patch = first[place].copy()
        first[place] = second[place]
        second[place] = patch


def partner_names(config: ViewsConfig, blocks: Sequence[tuple[str, str]], view: int) -> list[bytes]:
    """Streams from which the partners of blocks, (shard, `members`) each, are drawn in one view."""
    return [stream_hash("partners", config.seed, *block, view // config.mix_every) for block in blocks]


def partners(names: list[bytes], rows: int) -> np.ndarray:
    """Each row's partner in blocks of so many rows: int64 (blocks, rows); -1 for an odd last one."""
    order = np.argsort(words(names, DrawStage.MIXING, rows), axis=1, kind="stable")
    pairs = order[:, : rows // 2 * 2].reshape(len(names), -1, 2)
    partner = np.full((len(names), rows), -1, np.int64)
    np.put_along_axis(partner, pairs[..., 0], pairs[..., 1], axis=1)
    np.put_along_axis(partner, pairs[..., 1], pairs[..., 0], axis=1)
    return partner


def coins(config: ViewsConfig, shard: str, block: str, view: int, pairs: int) -> np.ndarray:
    """Whether each pair of a block is mixed in a view, in the order of their first rows: bool (pairs,)."""
    name = stream_hash("mixed", config.seed, shard, block, view)
    return uniform(words([name], DrawStage.MIXING, pairs)[0]) < config.mixup_prob


def members(keys: Sequence[str]) -> str:
    """A name for the membership of a block: hex digest of its keys and their lengths."""
    lengths = np.array([len(key) for key in keys], "<u4")
    return hashlib.blake2b(lengths.tobytes() + "".join(keys).encode(), digest_size=16).hexdigest()


def mixed_labels(pairs: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """The label with the larger share: own and partner's labels int64 (n, 2), own share (n,) -> int64 (n,).

    It is the argmax of the mixed target, equal shares going to the lower class. -1 unless both labels are known. A
    row that isn't mixed has its own label twice.
    """
    own, other = pairs[:, 0], pairs[:, 1]
    label = np.where((lam > 0.5) | ((lam == 0.5) & (own < other)), own, other)
    return np.where((own >= 0) & (other >= 0), label, -1)


class MixingDraws:
    """Pairs of one view of one block.

    Attributes:
        partner: int64 (n,), the row with which each is paired; -1 for none.
        mixed: bool (n,), whether the pair is mixed.
        lam: float64 (n,), the share that a row keeps of itself; 1 where it is not mixed.
    """

    def __init__(self, config: ViewsConfig, shard: str, keys: Sequence[str], view: int) -> None:
        block = members(keys)
        self.partner = partners(partner_names(config, [(shard, block)], view), len(keys))[0]
        first = np.flatnonzero(self.partner > np.arange(len(keys)))
        second, pairs = self.partner[first], len(first)
        name = stream_hash("mixing", config.seed, shard, block, view)
        u = uniform(words([name], DrawStage.MIXING, pairs * (_COINS + BETA_WORDS))[0]).reshape(
            pairs, _COINS + BETA_WORDS
        )
        cut = u[:, 0] < config.mixup_switch_prob
        if not (config.mixup and config.cutmix):
            cut[:] = not config.mixup
        lam = beta(np.where(cut, config.cutmix, config.mixup), u[:, _COINS:])
        half = np.sqrt(1 - lam) / 2
        top, left, bottom, right = (np.clip(u[:, c] + sign * half, 0, 1) for sign in (-1, 1) for c in (1, 2))
        lam = np.where(cut, 1 - (bottom - top) * (right - left), lam)
        mixed = coins(config, shard, block, view, pairs)
        self.mixed = np.zeros(len(keys), bool)
        self.mixed[first] = self.mixed[second] = mixed
        self.lam = np.ones(len(keys))
        # In float32 as batches have it, so that label and target can't disagree about the larger share.
        self.lam[first] = self.lam[second] = np.where(mixed, lam, 1).astype(np.float32)
        self._boxes: dict[int, tuple[float, float, float, float] | None] = {}
        for p, box in enumerate(np.stack([top, left, bottom, right], axis=1).tolist()):
            self._boxes[int(first[p])] = self._boxes[int(second[p])] = tuple(box) if cut[p] else None

    def of(self, i: int) -> Mix | None:
        """How row `i` and its partner are mixed; None if they are not."""
        return None if self.lam[i] == 1 else Mix(float(self.lam[i]), self._boxes[i])

    def labels(self, own: np.ndarray) -> np.ndarray:
        """Labels of the block's rows, int64 (n,) -> those of its mixed views; see `mixed_labels`."""
        other = np.where(self.mixed, own[self.partner], own)
        return mixed_labels(np.stack([own, other], axis=1), self.lam)
