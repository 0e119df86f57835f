"""What a provider is: someone who can run a case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import fastdistill as fd

from .cases import Case
from .inputs import Inputs

Result = tuple[Tensor, ...]
"""The loss, then, where the case has a backward, the gradient by each leaf that wants one; a limit
has no loss."""

Runner = Callable[[], Result]
"""One pass of a case; gradients go to memory that is fresh each time, as in training."""

Loss = Callable[..., Tensor]
"""The mean loss of the student's tensors, a teacher, and ``labels`` and ``mask`` if there are."""

Build = Callable[[Case, Inputs], Runner]


def make_runner(case: Case, inputs: Inputs, loss: Loss) -> Runner:
    """Forward, and backward where the case has one, of a loss."""
    leaves = tuple(inputs.leaves.values())
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    def forward() -> Result:
        with torch.no_grad():
            return (loss(*leaves, inputs.teacher, **inputs.tokens),)

    def both() -> Result:
        value = loss(*leaves, inputs.teacher, **inputs.tokens)
        return value.detach(), *torch.autograd.grad(value, wanted)

    return both if case.backward else forward


def by_loss(loss_of_case: Callable[[Case], Loss]) -> Build:
    """What builds the runner of a loss that depends on the case."""
    return lambda case, inputs: make_runner(case, inputs, loss_of_case(case))


def options_of(case: Case) -> dict[str, Any]:
    """The options of the loss of a case."""
    options: dict[str, Any] = {"divergence": case.divergence}
    if case.kind == "linear_labels":
        options |= {"soft_weight": 0.0, "hard_weight": 1.0}
    if case.chunk_size is not None:
        options["chunk_size"] = case.chunk_size
    return options


def loss_of(module: object, case: Case) -> Loss:
    """The loss of a case, of fastdistill or of its reference."""
    name = "linear_distillation_loss" if case.has_head else "distillation_loss"
    return functools.partial(getattr(module, name), **options_of(case))


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
    build: Build
    role: Literal["ours", "rival", "limit"] = "rival"
    applies: Callable[[Case], bool] = always
    missing: Callable[[], str | None] = installed  # why it cannot be had here, or None
    compiled: bool = False  # whether the first run is not like the others
    native_gemms: bool = True  # whether GEMMs run in the dtype of the case, whatever their speed


OURS = Provider(
    "fastdistill", by_loss(functools.partial(loss_of, fd)), role="ours", native_gemms=False
)
