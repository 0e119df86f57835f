"""The options of a loss, checked once, and what a row kernel needs of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .divergences import Divergence, get_divergence

Reduction = Literal["none", "sum", "mean"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes of logits, hidden states, heads and log-probabilities."""


@dataclass(frozen=True)
class LossOptions:
    """Everything about a loss but the tensors of a batch; fields as in ``distillation_loss``."""

    divergence: Divergence | str = "forward_kl"
    temperature: float = 1.0
    soft_weight: float = 1.0
    hard_weight: float = 0.0
    scale_by_temperature_squared: bool = False
    ignore_index: int = -100
    reduction: Reduction = "mean"
    student_softcap: float | None = None
    student_scale: float = 1.0
    student_valid_vocab: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.divergence, str):
            object.__setattr__(self, "divergence", get_divergence(self.divergence))
        elif not isinstance(self.divergence, Divergence):
            raise TypeError(
                f"divergence must be a divergence or its name, got {type(self.divergence).__name__}"
            )
        check_positive("temperature", self.temperature)
        check_transform(
            "student_", self.student_softcap, self.student_scale, self.student_valid_vocab
        )
        check_integer("ignore_index", self.ignore_index)
        for name in ("soft_weight", "hard_weight"):
            value = getattr(self, name)
            check_number(name, value)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {value}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {self.reduction!r}")

    @property
    def soft_factor(self) -> float:
        """What multiplies the divergence of a row."""
        squared = self.temperature**2 if self.scale_by_temperature_squared else 1.0
        return self.soft_weight * squared


def check_number(name: str, value: float) -> None:
    """That it is an int or a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_integer(name: str, value: int) -> None:
    """That it is an int, or one that a compiler does not know."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")


def check_positive(name: str, value: float) -> None:
    """That it is a number in (0, inf)."""
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def _check_count(name: str, value: int | None) -> None:
    if value is None:
        return
    check_integer(name, value)
    if value < 1:
        raise ValueError(f"{name} must be None or >= 1, got {value}")


def check_transform(prefix: str, softcap: float | None, scale: float, valid: int | None) -> None:
    """What makes the logits of a side of what its head gives; ``prefix`` says whose it is."""
    if softcap is not None:
        check_positive(f"{prefix}softcap", softcap)
    check_positive(f"{prefix}scale", scale)
    _check_count(f"{prefix}valid_vocab", valid)


def check_chunking(chunk_size: int | None, logits_dtype: torch.dtype | None) -> None:
    """The options that only the linear loss has."""
    _check_count("chunk_size", chunk_size)
    if logits_dtype not in (None, torch.float32):
        raise ValueError(f"logits_dtype must be None or torch.float32, got {logits_dtype}")


def common_vocab(student: int, teacher: int | None, *valid: int | None) -> int:
    """The number of real ids: sizes must agree unless a ``valid_vocab`` says how many there are."""
    stated = {n for n in valid if n is not None}
    teacher = student if teacher is None else teacher
    if len(stated) > 1:
        raise ValueError(
            f"teacher valid_vocab and student_valid_vocab must agree, got {valid[0]} and {valid[1]}"
        )
    if stated:
        (vocab,) = stated
        if vocab > min(student, teacher):
            raise ValueError(
                "valid_vocab must be at most the vocabulary size, "
                f"got {vocab} and {min(student, teacher)}"
            )
        return vocab
    if student != teacher:
        raise ValueError(
            f"student and teacher must have the same vocabulary size, got {student} and {teacher} "
            "(valid_vocab says how many ids of a padded head are real)"
        )
    return student


def check_tensor(name: str, value: Tensor | None) -> None:
    """That an optional argument is a tensor."""
    if value is not None and not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_device(name: str, value: Tensor | None, device: torch.device) -> None:
    """That an optional tensor is where the student is: the kernels take addresses."""
    if value is not None and value.device != device:
        raise ValueError(f"{name} must be on the student's device {device}, got {value.device}")


def check_leading_shape(name: str, value: Tensor | None, leading: tuple[int, ...]) -> None:
    """That an optional per-token tensor has the student's leading shape."""
    check_tensor(name, value)
    if value is not None and tuple(value.shape) != leading:
        raise ValueError(f"{name} must have shape {leading}, got {tuple(value.shape)}")
