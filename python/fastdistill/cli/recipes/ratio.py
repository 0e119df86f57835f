"""The ratio of two sums over blocks of tokens, and how sure it is."""

from __future__ import annotations

import math

from torch import Tensor


def ratio(parts: Tensor, wholes: Tensor) -> tuple[float, float]:
    """The sum of ``parts`` over that of ``wholes``, both (blocks,), and its standard error.

    The error is seen in how much the blocks differ, since the tokens of one are correlated
    (Cochran, Sampling Techniques, 1977, chapter 6). A single block shows none: it is 0 then.
    """
    parts, wholes = parts.double(), wholes.double()
    found = parts.sum() / wholes.sum()
    residuals = parts - found * wholes
    variance = (residuals**2).sum() * len(parts) / max(len(parts) - 1, 1)
    return found.item(), math.sqrt(variance.item()) / wholes.sum().item()
