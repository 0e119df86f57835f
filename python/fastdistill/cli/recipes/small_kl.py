"""Whether a small KL is reported right: against float64, beside what rounded logits give."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div, linear

import fastdistill as fd

from ..models import hidden_states

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class SmallKL:
    """KL(original || student) in nats per token, from the same last hidden states and heads.

    First from those of a float32 forward pass, then from the same rounded to bfloat16: that is
    another KL, for the rounding changes the hidden states themselves.
    """

    scale: float
    """The student's weights are original + scale * (quantised - original)."""
    float32_reference: float
    """In float64 throughout."""
    float32: float
    """The loss of this package."""
    bfloat16_reference: float
    """In float64 throughout."""
    bfloat16: float
    """The loss of this package, with ``logits_dtype=torch.float32``."""
    rounded_logits: float
    """bfloat16 logits and a float32 log_softmax, as in losses that are handed logits."""
    rounded_log_probabilities: float
    """bfloat16 logits and a bfloat16 log_softmax."""


@torch.no_grad()
def small_kls(
    original: LlamaForCausalLM,
    quantised: LlamaForCausalLM,
    ids: Tensor,
    scales: Iterable[float],
) -> list[SmallKL]:
    """The KL on ``ids`` (blocks, length) of students nearer and nearer to ``original``.

    Both models are float32, the weights of ``quantised`` those that its integers stand for.
    """
    student = copy.deepcopy(original)

    def outputs(scale: float) -> _Outputs:
        _interpolate(student, original, quantised, scale)
        return _outputs(student, ids)

    target = outputs(0.0)
    return [_compare(scale, target, outputs(scale)) for scale in scales]


@dataclass(frozen=True)
class _Outputs:
    """What the logits are made of: hidden states (N, D) and a head (V, D)."""

    hidden: Tensor
    head: Tensor

    def to(self, dtype: torch.dtype) -> _Outputs:
        return _Outputs(self.hidden.to(dtype), self.head.to(dtype))

    def logits(self) -> Tensor:
        return linear(self.hidden, self.head)


def _outputs(model: LlamaForCausalLM, ids: Tensor) -> _Outputs:
    model.eval()  # type: ignore[no-untyped-call]
    return _Outputs(hidden_states(model, ids).flatten(0, 1), model.lm_head.weight)


def _interpolate(
    student: LlamaForCausalLM,
    original: LlamaForCausalLM,
    quantised: LlamaForCausalLM,
    scale: float,
) -> None:
    """Set the weights of ``student`` to original + scale * (quantised - original)."""
    ends = zip(original.parameters(), quantised.parameters(), strict=True)
    for parameter, (start, end) in zip(student.parameters(), ends, strict=True):
        torch.lerp(start, end, scale, out=parameter)


def _compare(scale: float, original: _Outputs, student: _Outputs) -> SmallKL:
    bfloat16 = original.to(torch.bfloat16), student.to(torch.bfloat16)
    logits = [outputs.logits() for outputs in bfloat16]
    return SmallKL(
        scale=scale,
        float32_reference=_reference(original, student),
        float32=_loss(original, student),
        bfloat16_reference=_reference(*bfloat16),
        bfloat16=_loss(*bfloat16),
        rounded_logits=_materialised(*(each.float() for each in logits)),
        rounded_log_probabilities=_materialised(*logits),
    )


def _reference(original: _Outputs, student: _Outputs) -> float:
    return _materialised(original.to(torch.float64).logits(), student.to(torch.float64).logits())


def _materialised(original: Tensor, student: Tensor) -> float:
    """From logits (N, V), in their dtype up to the sum."""
    log_p, log_q = original.log_softmax(-1), student.log_softmax(-1)
    terms = kl_div(log_q, log_p, reduction="none", log_target=True)
    return terms.sum(-1, dtype=torch.float64).mean().item()


def _loss(original: _Outputs, student: _Outputs) -> float:
    loss = fd.linear_distillation_loss(
        student.hidden,
        student.head,
        fd.TeacherHead(original.hidden, original.head),
        logits_dtype=torch.float32,
    )
    return float(loss)
