"""One batch of next-token distillation, from two models: what the integrations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from .._options import LossOptions
from ..losses import LinearDistillationLoss
from ..metrics import Metrics
from ..students import StudentHead
from ..teachers import TeacherHead

_SET_HERE = {"ignore_index", "reduction", "student_softcap", "student_scale"}
_CHOSEN = {field.name for field in fields(LossOptions)} - _SET_HERE | {"chunk_size", "logits_dtype"}


def next_token_labels(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """``labels`` (..., S) aligned with what predicts them: position i holds label i + 1.

    The last position predicts nothing and holds ``ignore_index``. Hidden states stay whole, so
    nothing but the labels is copied.
    """
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def check_heads_are_whole(trainer: Any) -> None:
    """Raise ValueError where a process of a ``transformers.Trainer`` has but a shard of a head.

    The loss reads a head outside of its module, where FSDP and ZeRO-3 do not gather it.
    """
    deepspeed = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3):
        raise ValueError("every process needs the whole heads: no FSDP, no DeepSpeed ZeRO-3")


def metric_values(metrics: Metrics) -> dict[str, Tensor]:
    """The metrics that the teacher can give, 0-d tensors by name."""
    values = {field.name: getattr(metrics, field.name) for field in fields(metrics)}
    return {name: value for name, value in values.items() if value is not None}


class MetricSums:
    """Metrics averaged over the counted tokens of many batches.

    Batches are added on their device, without waiting for it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], num_items: float | Tensor | None = None) -> None:
        """Add a batch.

        Args:
            values: ``counted``, and averages, 0-d.
            num_items: what the averages were divided by; None is ``counted``.
        """
        divisor = values["counted"] if num_items is None else num_items
        for name, value in values.items():
            total = value if name == "counted" else value.detach() * divisor
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The averages, and how many tokens were ``counted``; the sums begin again at zero.

        Args:
            reduce: sums a tensor over the processes.
        """
        if not self._sums:
            return {}
        sums = reduce(torch.stack([total.double() for total in self._sums.values()])).tolist()
        totals = dict(zip(self._sums, sums, strict=True))
        self._sums = {}
        counted = totals.pop("counted")
        averages = {name: total / max(counted, 1.0) for name, total in totals.items()}
        return {**averages, "counted": counted}


class CausalLoss:
    """:func:`linear_distillation_loss` of a batch, given two causal models.

    Args:
        loss_options: keywords of :func:`linear_distillation_loss`: divergence, temperature,
            soft_weight, hard_weight, scale_by_temperature_squared, student_valid_vocab (which holds
            for the teacher too), chunk_size, logits_dtype.

    Raises:
        TypeError: another keyword. ValueError, TypeError: a value that the loss does not take.
    """

    def __init__(self, loss_options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(loss_options or {})
        if unknown := self._options.keys() - _CHOSEN:
            raise TypeError(f"loss_options takes {sorted(_CHOSEN)}, got {sorted(unknown)}")
        LinearDistillationLoss(**self._options)  # checks the values
        self._valid_vocab = self._options.pop("student_valid_vocab", None)

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Mapping[str, Any],
        num_items: float | Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """The mean over the tokens whose label is not -100.

        Args:
            inputs: what both models are called with, and ``labels`` (B, S), which are shifted here
                unless ``shift_labels``, already aligned, stand beside them.
            num_items: what the sum over tokens is divided by, in place of their number.
        """
        if "labels" not in inputs:
            raise ValueError(f"the inputs must hold labels, got {sorted(inputs)}")
        shifted = inputs.get("shift_labels")
        labels = next_token_labels(inputs["labels"]) if shifted is None else shifted
        target = TeacherHead.from_model(teacher, valid_vocab=self._valid_vocab, **inputs)
        head = StudentHead.from_model(student, valid_vocab=self._valid_vocab, **inputs)
        loss, metrics = head.loss(
            target, labels, num_items=num_items, return_metrics=True, **self._options
        )
        return loss, metrics
