"""int4 weights by torchao: rounded while they are trained, then converted to integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

GROUP = 32
"""Weights of a row that share a scale."""


def check_groups(model: LlamaForCausalLM) -> None:
    """Raise :class:`UserError` unless the rows of all matrices can be cut into groups."""
    for name, matrix in _matrices(model):
        if matrix.in_features % GROUP:
            raise UserError(
                f"--teacher: the inputs of {name} must be a multiple of {GROUP} "
                f"to be quantised in groups, got {matrix.in_features}"
            )


def prepare(model: LlamaForCausalLM) -> None:
    """Let ``model`` round its weights to int4 in each forward pass, with a gradient as if not.

    That is all matrices but the head, which is the embedding.
    """
    _transform(model, "prepare")


def convert(model: LlamaForCausalLM) -> None:
    """Turn the rounded weights of a prepared ``model`` into integers and scales."""
    _transform(model, "convert")


def dequantise(model: LlamaForCausalLM) -> None:
    """Turn the integers of a converted ``model`` back into the weights that they stand for.

    It computes the same: torchao, too, multiplies by these, made anew in each forward pass.
    """
    for _, matrix in _matrices(model):
        weight: Any = matrix.weight
        matrix.weight = nn.Parameter(weight.dequantize(), requires_grad=False)


@dataclass(frozen=True)
class Size:
    """Bytes of the parameters of a model; of a matrix that is used twice, once."""

    packed: int
    """With two int4 weights to a byte, and without the zero points, which are all zero."""
    in_memory: int
    """As torchao holds them: a byte for each int4 weight and for each zero point."""


def size(model: nn.Module) -> Size:
    """The size of ``model``, converted or not."""
    packed = in_memory = 0
    for parameter in model.parameters():
        weight: Any = parameter
        if hasattr(weight, "qdata"):
            packed += weight.qdata.numel() // 2 + weight.scale.nbytes
            in_memory += weight.qdata.nbytes + weight.scale.nbytes + weight.zero_point.nbytes
        else:
            packed += parameter.nbytes
            in_memory += parameter.nbytes
    return Size(packed, in_memory)


def _transform(model: LlamaForCausalLM, step: str) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.qat import QATConfig

    dtype = torch.int4  # type: ignore[attr-defined]
    int4 = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(GROUP))
    names = {name for name, _ in _matrices(model)}
    quantize_(model, QATConfig(int4, step=step), lambda _, name: name in names)


def _matrices(model: LlamaForCausalLM) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of ``model`` with their names, without the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            yield name, module
