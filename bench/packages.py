"""Losses of other packages, imported from them where they are installed."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

import fastdistill as fd

from .cases import Case, Inputs
from .provider import Provider, Runner


@functools.cache
def _attribute(module: str, name: str) -> tuple[Any, str | None]:
    """(the attribute, None), or (None, why it cannot be imported)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name), None
    except Exception as error:  # a broken package is as good as none
        return None, f"cannot import {module}: {error}"


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
    return case.kind == "linear" and case.divergence == fd.ForwardKL()


def _build_liger(case: Case, inputs: Inputs, *, compiled: bool) -> Runner:
    loss = _liger()[0](
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_beta(case), compiled=compiled
    )
    hidden, weight = leaves = tuple(inputs.leaves.values())
    labels = torch.zeros(case.rows, dtype=torch.int64, device=hidden.device)
    teacher = inputs.teacher
    assert isinstance(teacher, fd.TeacherHead)

    def run() -> tuple[Tensor, ...]:
        value = loss(hidden, weight, teacher.hidden, teacher.weight, labels)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def _build_trl(case: Case, inputs: Inputs) -> Runner:
    function, beta = _trl()[0], _beta(case)
    no_bias, transform = None, (1.0, None)  # scale and softcap
    hidden, weight = leaves = tuple(inputs.leaves.values())
    teacher = inputs.teacher
    assert isinstance(teacher, fd.TeacherHead)

    def run() -> tuple[Tensor, ...]:
        rows, _ = function.apply(
            hidden, weight, no_bias, teacher.hidden, teacher.weight, no_bias, beta, 1.0, *transform,
            *transform,
        )  # fmt: skip
        value = rows.mean()
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def _build_fla(case: Case, inputs: Inputs) -> Runner:
    loss = _fla()[0]
    hidden, weight = leaves = tuple(inputs.leaves.values())
    teacher = inputs.teacher
    assert isinstance(teacher, fd.TeacherHead)

    def run() -> tuple[Tensor, ...]:
        value = loss(hidden, teacher.hidden, weight, teacher.weight)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


PACKAGES = (
    Provider(
        "liger",
        functools.partial(_build_liger, compiled=False),
        applies=_applies,
        missing=lambda: _liger()[1],
    ),
    Provider(
        "liger compiled",
        functools.partial(_build_liger, compiled=True),
        applies=_applies,
        missing=lambda: _liger()[1],
        compiled=True,
    ),
    Provider("trl", _build_trl, applies=_applies, missing=lambda: _trl()[1]),
    Provider("fla", _build_fla, applies=_fla_applies, missing=lambda: _fla()[1]),
)
