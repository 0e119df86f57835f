"""The losses as modules: configuration at construction, tensors at the call."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ._options import LossOptions, check_chunking
from .functional import distillation_loss, linear_distillation_loss
from .teachers import Teacher


class DistillationLoss(nn.Module):
    """:func:`distillation_loss` with a fixed configuration.

    Args:
        config: the keywords of :func:`distillation_loss` that are not tensors of a batch:
            divergence, temperature, soft_weight, hard_weight, scale_by_temperature_squared,
            ignore_index, reduction, student_softcap, student_scale, student_valid_vocab.

    The call takes the tensors: ``loss(student_logits, teacher, labels, mask=..., weights=...)``.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        options = LossOptions(**config)
        self.config = {f.name: getattr(options, f.name) for f in fields(options)}

    def forward(
        self,
        student_logits: Tensor,
        teacher: Teacher | Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        num_items: float | Tensor | None = None,
        return_metrics: bool = False,
    ) -> Any:
        return distillation_loss(
            student_logits, teacher, labels, mask=mask, weights=weights, num_items=num_items,
            return_metrics=return_metrics, **self.config,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _repr(self.config)


class LinearDistillationLoss(nn.Module):
    """:func:`linear_distillation_loss` with a fixed configuration.

    Args:
        chunk_size, logits_dtype: as for :func:`linear_distillation_loss`.
        config: as for :class:`DistillationLoss`.
    """

    def __init__(
        self,
        *,
        chunk_size: int | None = None,
        logits_dtype: torch.dtype | None = None,
        **config: Any,
    ) -> None:
        super().__init__()
        options = LossOptions(**config)
        self.config = {f.name: getattr(options, f.name) for f in fields(options)}
        check_chunking(chunk_size, logits_dtype)
        self.config |= {"chunk_size": chunk_size, "logits_dtype": logits_dtype}

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher: Teacher | Tensor,
        labels: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        num_items: float | Tensor | None = None,
        return_metrics: bool = False,
    ) -> Any:
        return linear_distillation_loss(
            student_hidden, student_weight, teacher, labels, student_bias=student_bias, mask=mask,
            weights=weights, num_items=num_items, return_metrics=return_metrics, **self.config,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _repr(self.config)


def _repr(config: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.items() if value is not None)
