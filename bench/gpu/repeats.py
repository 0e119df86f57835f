"""Whether the same inputs give the same bits, in value and gradients."""

from __future__ import annotations

import itertools

import torch

from ..cases import DIVERGENCES, Case
from ..inputs import build_inputs
from ..provider import Result
from .accuracy import chunked_runner
from .worker import Context

RUNS = 3
DTYPES = (torch.bfloat16, torch.float32)


def cases(*, dry_run: bool) -> list[Case]:
    """Every divergence, with every kind of input and dtype."""
    rows, vocab, width = (16, 500, 32) if dry_run else (256, 151936, 512)
    return [
        Case(kind, rows, vocab, dtype, divergence, width, width, listed=64)
        for kind, dtype, divergence in itertools.product(
            ("logits", "top_k", "linear"), DTYPES, DIVERGENCES
        )
    ]


def same(first: Result, second: Result) -> bool:
    """Bit by bit. NaN is not the same as anything."""
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def differs(case: Case, device: torch.device, reduction: str) -> bool:
    """Whether a few runs on the same inputs are not all the same."""
    runner = chunked_runner(case, build_inputs(case, device), reduction)
    first, *others = (runner() for _ in range(RUNS))
    return not all(same(first, other) for other in others)


def run(context: Context) -> None:
    """Emit what differs from run to run, and fail at the end if anything does."""
    combinations = list(itertools.product(cases(dry_run=context.dry_run), ("mean", "none")))
    different = [
        f"{case.name}-{reduction}"
        for case, reduction in combinations
        if differs(case, context.device.torch, reduction)
    ]
    context.emit(
        "repeats",
        runs=RUNS,
        combinations=len(combinations),
        different=", ".join(different) or "none",
    )
    if different:
        raise SystemExit("\n".join(different))
