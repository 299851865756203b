"""From uniform numbers to other distributions, by transforms of our own.

Logarithms and cosines may differ in their last bit between processors and libraries, so results are rounded to
float32: what is left of such a difference would have to fall on a rounding edge.
"""

import math

import numpy as np

# Attempts at a gamma variate; each is accepted with probability .95 or more, so 4e-11 of draws take the mode.
_ATTEMPTS = 8
# Uniform numbers that one beta variate takes.
BETA_WORDS = 2 * (3 * _ATTEMPTS + 1)


def normal(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two arrays of uniform [0, 1) -> standard normal float64 of the same shape (Box and Muller 1958)."""
    return _rounded(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * math.pi * v))


def beta(alpha: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Symmetric Beta(alpha, alpha): alpha float64 (n,) > 0, u uniform (n, BETA_WORDS) -> float64 (n,) in [0, 1].

    The share of one of two gamma variates (Marsaglia and Tsang, "A simple method for generating gamma
    variables", 2000). Alpha 1 is uniform and takes one number.
    """
    half = BETA_WORDS // 2
    first, second = (_log_gamma_variate(alpha, part) for part in (u[:, :half], u[:, half:]))
    share = 1 / (1 + np.exp(np.clip(second - first, -700, 700)))
    return _rounded(np.where(alpha == 1, u[:, 0], share))


def _log_gamma_variate(alpha: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Logarithm of Gamma(alpha, 1), of which small alphas would leave nothing in float64."""
    lifted = np.where(alpha < 1, alpha + 1, alpha)[:, None]
    d = lifted - 1 / 3
    x = np.sqrt(-2 * np.log1p(-u[:, 0:-1:3])) * np.cos(2 * math.pi * u[:, 1:-1:3])
    v = (1 + x / np.sqrt(9 * d)) ** 3
    log_v = np.log(np.where(v > 0, v, 1))
    accepted = (v > 0) & (np.log1p(-u[:, 2:-1:3]) < 0.5 * x * x + d - d * v + d * log_v)
    taken = np.take_along_axis(log_v, accepted.argmax(axis=1)[:, None], axis=1)[:, 0]
    log_x = np.log(d[:, 0]) + np.where(accepted.any(axis=1), taken, 0)
    return np.where(alpha < 1, log_x + np.log1p(-u[:, -1]) / alpha, log_x)


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)
