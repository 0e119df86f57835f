"""What a provider is: someone who can run a case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .cases import Case, Inputs

Result = tuple[Tensor, ...]
"""The loss, then the gradient by each leaf, in the order of the leaves; nothing for a limit."""

Runner = Callable[[], Result]
"""One forward and backward pass; gradients go to memory that is fresh each time, as in training."""


Loss = Callable[..., Tensor]
"""The loss of the student's tensors and a teacher."""


def loss_of(module: object, case: Case) -> Loss:
    """The loss of a case, of fastdistill or of its reference."""
    name = "linear_distillation_loss" if case.kind == "linear" else "distillation_loss"
    return functools.partial(getattr(module, name), divergence=case.divergence)


def always(_: Case) -> bool:
    return True


def installed() -> None:
    return None


@dataclass(frozen=True)
class Provider:
    """Someone who can run a case.

    A ``limit`` does only a part of the work of a case, at best speed: nobody who does all of it can
    be faster.
    """

    name: str
    build: Callable[[Case, Inputs], Runner]
    role: Literal["ours", "rival", "limit"] = "rival"
    applies: Callable[[Case], bool] = always
    missing: Callable[[], str | None] = installed  # why it cannot be had here, or None
    weighed: bool = True  # whether its peak memory is measured too
    compiled: bool = False  # whether the first run is not like the others
    native_gemms: bool = True  # whether GEMMs run in the dtype of the case, whatever their speed
