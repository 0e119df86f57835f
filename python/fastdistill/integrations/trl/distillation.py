"""DistillationTrainer of trl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import trl
from torch import Tensor, nn
from trl.trainer import distillation_trainer

from ...students import StudentHead
from ...teachers import TeacherHead
from ._loss import LossMetrics, divergence_for

_TrlTrainer: Any = distillation_trainer.DistillationTrainer

_TRLS_LOSS = "_chunked_divergence_loss"
"""The function of TRL's module that gets hidden states and heads, and that is replaced."""

if _TRLS_LOSS not in _TrlTrainer._compute_loss.__code__.co_names:
    raise ImportError(
        f"DistillationTrainer of TRL {trl.__version__} does not call {_TRLS_LOSS}, which TRL 1.16 "
        "does and which fastdistill replaces"
    )


class DistillationTrainer(LossMetrics, _TrlTrainer):  # type: ignore[misc]
    """TRL's DistillationTrainer (arXiv:2306.13649) with the loss of its hidden states made here.

    TRL's loss has no logits either, but projects both heads again in the backward. Its conventions
    hold: both distributions at ``temperature``, logits in float32, the sum over completion tokens
    divided by ``num_items_in_batch``, logit scale and softcap of either model. TRL runs the models
    outside autocast: ``bf16=True`` alone does nothing to float32 weights.
    """

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with _replaced_loss(self._divergence_loss):
            results: tuple[Tensor, Tensor, Tensor] = super()._compute_loss(
                unwrapped_student, inputs, num_items_in_batch
            )
        return results

    def _divergence_loss(
        self,
        student_hidden: Tensor,
        teacher_hidden: Tensor,
        student_weight: Tensor,
        teacher_weight: Tensor,
        completion_mask: Tensor,
        beta: float,
        *,
        num_items_in_batch: Tensor | int | None = None,
        student_lm_head_bias: Tensor | None = None,
        teacher_lm_head_bias: Tensor | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        student_final_logit_softcapping: float | None = None,
        teacher_final_logit_softcapping: float | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments and results of the function that it replaces: loss, sum of the student's
        entropy, number of counted tokens."""
        student = StudentHead(
            student_hidden,
            student_weight.to(student_hidden.dtype),
            student_lm_head_bias,
            softcap=student_final_logit_softcapping,
            scale=student_logit_scale,
        )
        teacher = TeacherHead(
            teacher_hidden,
            teacher_weight.to(teacher_hidden.dtype),
            teacher_lm_head_bias,
            softcap=teacher_final_logit_softcapping,
            scale=teacher_logit_scale,
        )
        loss, metrics = student.loss(
            teacher,
            mask=completion_mask != 0,
            divergence=divergence_for(beta),
            temperature=temperature,
            num_items=num_items_in_batch,
            logits_dtype=torch.float32,
            return_metrics=True,
        )
        self._add_metrics(metrics, num_items_in_batch)
        divisor = metrics.counted if num_items_in_batch is None else num_items_in_batch
        return loss, metrics.student_entropy * divisor, metrics.counted


@contextmanager
def _replaced_loss(loss: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Iterator[None]:
    """While it lasts, TRL's module has ``loss`` under the name by which its trainer calls it."""
    before = getattr(distillation_trainer, _TRLS_LOSS)
    setattr(distillation_trainer, _TRLS_LOSS, loss)
    try:
        yield
    finally:
        setattr(distillation_trainer, _TRLS_LOSS, before)
