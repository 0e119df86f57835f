"""Losses of other packages, imported from them where they are installed."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastdistill as fd

from .cases import Case
from .provider import Loss, Provider, by_loss

IGNORED = -100
"""The label of a token that does not count."""


@functools.cache
def _attribute(module: str, name: str) -> tuple[Any, str | None]:
    """(the attribute, None), or (None, why it cannot be imported)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name), None
    except Exception as error:  # a broken package is as good as none
        return None, f"cannot import {module}: {error}"


# ---- distillation -----------------------------------------------------------------------------


def _liger() -> tuple[Any, str | None]:
    return _attribute("liger_kernel.chunked_loss", "LigerFusedLinearJSDLoss")


def _trl() -> tuple[Any, str | None]:
    return _attribute("trl.kernels.chunked_divergence", "ChunkedDivergenceFunction")


def _fla() -> tuple[Any, str | None]:
    return _attribute("fla.modules.fused_kl_div", "fused_kl_div_loss")


def _beta(case: Case) -> float | None:
    """Weight of the teacher in the mixture, as both packages call the divergences."""
    if isinstance(case.divergence, fd.JensenShannon):
        return case.divergence.beta
    return {fd.ForwardKL: 0.0, fd.ReverseKL: 1.0}.get(type(case.divergence))


def _applies(case: Case) -> bool:
    return case.kind == "linear" and _beta(case) is not None


def _fla_applies(case: Case) -> bool:
    return case.kind == "linear" and case.divergence == fd.ForwardKL() and not case.half_masked


def _liger_loss(case: Case, *, compiled: bool) -> Loss:
    whole = _liger()[0](
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_beta(case), compiled=compiled
    )

    def loss(
        hidden: Tensor, weight: Tensor, teacher: fd.TeacherHead, *, mask: Tensor | None = None
    ) -> Tensor:
        labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        if mask is not None:
            labels.masked_fill_(~mask, IGNORED)
        return whole(hidden, weight, teacher.hidden, teacher.weight, labels)  # type: ignore[no-any-return]

    return loss


def _trl_loss(case: Case) -> Loss:
    function, beta = _trl()[0], _beta(case)
    no_bias, transform = None, (1.0, None)  # scale and softcap

    def loss(
        hidden: Tensor, weight: Tensor, teacher: fd.TeacherHead, *, mask: Tensor | None = None
    ) -> Tensor:
        rows = slice(None) if mask is None else mask  # what its trainer does before the call
        values, _ = function.apply(
            hidden[rows], weight, no_bias, teacher.hidden[rows], teacher.weight, no_bias, beta, 1.0,
            *transform, *transform,
        )  # fmt: skip
        return values.mean()  # type: ignore[no-any-return]

    return loss


def _fla_loss(_: Case) -> Loss:
    whole = _fla()[0]
    return lambda hidden, weight, teacher: whole(hidden, teacher.hidden, weight, teacher.weight)


# ---- hard labels ------------------------------------------------------------------------------


def _torch_linear() -> tuple[Any, str | None]:
    return _attribute("torch.nn.functional", "linear_cross_entropy")


def _torch_options() -> tuple[Any, str | None]:
    return _attribute("torch.nn", "LinearCrossEntropyOptions")


def _cut() -> tuple[Any, str | None]:
    return _attribute("cut_cross_entropy", "linear_cross_entropy")


def _on_labels(function: Callable[..., Tensor], **options: Any) -> Loss:
    return lambda hidden, weight, _, labels: function(hidden, weight, labels, **options)


def _has_labels(case: Case) -> bool:
    return case.kind == "linear_labels"


# ---- all --------------------------------------------------------------------------------------

PACKAGES = (
    Provider(
        "liger",
        by_loss(functools.partial(_liger_loss, compiled=False)),
        applies=_applies,
        missing=lambda: _liger()[1],
    ),
    Provider(
        "liger compiled",
        by_loss(functools.partial(_liger_loss, compiled=True)),
        applies=_applies,
        missing=lambda: _liger()[1],
        compiled=True,
    ),
    Provider("trl", by_loss(_trl_loss), applies=_applies, missing=lambda: _trl()[1]),
    Provider("fla", by_loss(_fla_loss), applies=_fla_applies, missing=lambda: _fla()[1]),
    Provider(
        "torch linear_cross_entropy",
        by_loss(lambda _: _on_labels(_torch_linear()[0])),
        applies=_has_labels,
        missing=lambda: _torch_linear()[1],
    ),
    Provider(
        "torch linear_cross_entropy, chunked",
        by_loss(lambda _: _on_labels(_torch_linear()[0], options=_torch_options()[0]())),
        applies=_has_labels,
        missing=lambda: _torch_options()[1],
        compiled=True,  # it imports what it needs at its first call, which takes seconds
    ),
    Provider(
        "cut-cross-entropy compiled",
        by_loss(lambda _: _on_labels(_cut()[0], impl="torch_compile")),
        applies=_has_labels,
        missing=lambda: _cut()[1],
        compiled=True,
    ),
)
