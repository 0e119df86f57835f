"""Worst errors of value and gradient against float64, of every divergence, on the device."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch

import fastdistill as fd

from .. import check, providers
from ..accuracy import DTYPES, LOSSES, REGIMES, worst
from ..cases import DIVERGENCES, Case
from ..inputs import Inputs, build_inputs
from ..provider import Runner, loss_of, make_runner
from .worker import Context

TORCH = providers.find("torch eager")
_ERRORS = ("value_error", "gradient_error")


def is_right(ours: Iterable[float], torchs: Iterable[float], dtype: torch.dtype) -> bool:
    """Wrong is what is above the tolerance of the dtype and above twice the error of torch.

    The second matters where a gradient jumps, at p = q: rounded logits are on either side of it.
    """
    tolerance = check.TOLERANCE[dtype]
    return all(own <= max(tolerance, 2 * other) for own, other in zip(ours, torchs, strict=True))


def _logits(context: Context, divergence: fd.Divergence, dtype: torch.dtype) -> dict[str, Any]:
    """Worst errors over all kinds of input, ours and those of the formula in torch."""
    device, vocab = context.device.torch, 500 if context.dry_run else 32000
    pairs = [tuple(logits.to(device) for logits in regime(vocab)) for regime in REGIMES.values()]
    by_loss = [[worst(loss, divergence, dtype, pair) for pair in pairs] for loss in LOSSES]
    right = [is_right(ours, torchs, dtype) for ours, torchs in zip(*by_loss, strict=True)]
    (value, gradient), (torch_value, torch_gradient) = (
        [max(column) for column in zip(*errors, strict=True)] for errors in by_loss
    )
    return {
        "value_error": value,
        "gradient_error": gradient,
        "torch_value_error": torch_value,
        "torch_gradient_error": torch_gradient,
        "values": dict(zip(REGIMES, (error for error, _ in by_loss[0]), strict=True)),
        "right": all(right),
    }


def chunked_runner(case: Case, inputs: Inputs, reduction: str) -> Runner:
    """Ours; a linear loss in three chunks of which the last one is smaller.

    With the reduction "none" the gradients are those of the sum of the rows.
    """
    chunks = {"chunk_size": 3 * case.rows // 8} if case.kind == "linear" else {}
    loss = functools.partial(loss_of(fd, case), reduction=reduction, **chunks)
    return make_runner(case, inputs, lambda *tensors: loss(*tensors).sum())


def _of_case(
    kind: str, context: Context, divergence: fd.Divergence, dtype: torch.dtype
) -> dict[str, Any]:
    """Errors relative to the largest true magnitude, ours and those of the formula in torch."""
    case = Case(
        kind, 64, 500 if context.dry_run else 32000, dtype, divergence, listed=64,
        student_width=32 if context.dry_run else 512,
        teacher_width=48 if context.dry_run else 768,
    )  # fmt: skip
    inputs = build_inputs(case, context.device.torch)
    true = check.truth(case, inputs)
    runners = chunked_runner(case, inputs, "mean"), TORCH.build(case, inputs)
    ours, torchs = (check.errors(runner(), true) for runner in runners)
    return {
        "value_error": ours.value,
        "gradient_error": ours.gradient,
        "torch_value_error": torchs.value,
        "torch_gradient_error": torchs.gradient,
        "right": is_right(ours, torchs, dtype),
    }


INPUTS = {
    "logits": _logits,
    "top_k": functools.partial(_of_case, "top_k"),
    "linear": functools.partial(_of_case, "linear"),
}


def run(context: Context) -> None:
    """A summary for each input and dtype; fails at the end where something is wrong."""
    all_wrong = []
    for (name, errors), dtype in itertools.product(INPUTS.items(), DTYPES):
        rows = {str(divergence): errors(context, divergence, dtype) for divergence in DIVERGENCES}
        where = {"input": name, "dtype": str(dtype)[6:]}
        for divergence, row in rows.items():
            context.emit("errors", **where, divergence=divergence, **row)
        wrong = ", ".join(divergence for divergence, row in rows.items() if not row["right"])
        worst_errors = {key: max(row[key] for row in rows.values()) for key in _ERRORS}
        context.emit("accuracy", **where, wrong=wrong, **worst_errors)
        all_wrong += [f"{name}, {dtype}: {wrong}"] if wrong else []
    if all_wrong:
        raise SystemExit("\n".join(all_wrong))
