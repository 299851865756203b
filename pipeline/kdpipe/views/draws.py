"""Random numbers that belong to a view, not to a run.

Each view owns a stream of 64-bit words: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) keyed by a 128-bit hash of (seed, shard name, sample key, view). The hash's first half is
the cipher's key, its second half the counter's upper words, so distinct views never share a stream. NumPy's
own Philox gives the same words but takes 20 microseconds to construct; here a block's streams are
drawn in one vectorised call. The transforms below are ours because a library may change its own between
releases, and a cached view must be drawn the same for ever.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

# Evaluation views draw nothing: the centre crop and the four corners of timm's evaluation transform.
Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
View = int | Literal["center"] | Corner
FIVE_CROP: tuple[View, ...] = ("center", "top-left", "top-right", "bottom-left", "bottom-right")
# What one may evaluate on, by name; probabilities are averaged over five crops.
CROPS: dict[str, tuple[View, ...]] = {"center": ("center",), "five-crop": FIVE_CROP}


class DrawStage:
    """Number of each stage's counter range in a view's stream; never reused, never renumbered."""

    GEOMETRY = 0
    FLIP = 1
    JITTER = 2
    RAND_AUGMENT = 3
    ERASING = 4
    MIXING = 5
    GRAYSCALE = 6
    BLUR = 7
    INTERPOLATION = 8


_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10: `counter` (..., 4) and `key` (..., 2) of 32-bit words in uint64 -> (..., 4) likewise."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key[..., 0], key[..., 1]
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def stream_hash(*name: object) -> bytes:
    """16 bytes that name a stream; every part is length-prefixed, so none can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in name:
        data = str(part).encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return digest.digest()


def words(hashes: list[bytes], stage: int, count: int) -> np.ndarray:
    """The first `count` words of one stage of each stream: uint64 (len(hashes), count).

    A stage (geometry, flip, ...) has a counter range of its own, so that a later release which draws more in
    one stage, or adds one, leaves the others' draws alone.
    """
    names = np.frombuffer(b"".join(hashes), "<u4").reshape(-1, 4).astype(np.uint64)
    calls = -(-count // 2)
    counter = np.empty((len(hashes), calls, 4), np.uint64)
    counter[..., 0] = np.arange(calls, dtype=np.uint64)
    counter[..., 1] = np.uint64(stage)
    counter[..., 2:] = names[:, None, 2:]
    out = philox(counter, names[:, None, :2])
    pairs = out.reshape(len(hashes), calls, 2, 2)
    return ((pairs[..., 1] << _SHIFT) | pairs[..., 0]).reshape(len(hashes), calls * 2)[:, :count]


def uniform(raw: np.ndarray) -> np.ndarray:
    """Words -> float64 in [0, 1), from the upper 53 bits."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def view_streams(seed: int, shard: str, keys: Sequence[str], view: int) -> list[bytes]:
    """The streams of one view of several samples of one shard."""
    return [stream_hash("view", seed, shard, key, view) for key in keys]


def below(u: float, n: int) -> int:
    """Uniform [0, 1) and a bound n >= 1 -> an integer in [0, n)."""
    return min(int(u * n), n - 1)


def permutation(count: int, *name: object) -> np.ndarray:
    """A permutation of range(count) that belongs to a name: int64 (count,)."""
    return np.argsort(words([stream_hash("permutation", *name)], 0, count)[0], kind="stable")
