"""The linear loss from hidden states to gradients, against the losses of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .. import check
from ..cases import Case
from ..gemms import GEMMS
from ..inputs import Inputs, build_inputs
from ..packages import PACKAGES
from ..provider import OURS, Provider
from ..providers import find
from .rows import LISTED
from .worker import Context

_HEADS = {  # rows, vocabulary, hidden sizes of student and teacher
    "Llama": (8192, 128256, 2048, 4096),
    "Gemma": (8192, 256000, 2304, 3584),
    "Qwen": (4096, 151936, 896, 3584),
}
_TINY = {"tiny": (16, 500, 16, 24)}


def heads(*, dry_run: bool) -> dict[str, Case]:
    """The heads that are measured, by the family of models that has such a head."""
    return {
        name: Case(
            "linear", rows, vocab, torch.bfloat16, student_width=student, teacher_width=teacher
        )
        for name, (rows, vocab, student, teacher) in (_TINY if dry_run else _HEADS).items()
    }


def shapes(*, dry_run: bool) -> dict[str, Case]:
    """All heads, then the first one with other teachers, and with a weight that is not trained."""
    cases = heads(dry_run=dry_run)
    name, first = next(iter(cases.items()))
    given = replace(first, kind="linear_logits", teacher_width=0)
    return {
        **cases,
        f"{name}, teacher logits": given,
        f"{name}, top-k": replace(given, kind="linear_top_k", listed=LISTED),
        f"{name}, frozen": replace(first, frozen=True),
    }


BARE_GEMMS = replace(GEMMS[-1], name="bare GEMMs")
PROVIDERS = (
    OURS,
    BARE_GEMMS,
    find("torch eager"),
    find("torch short formula"),
    *PACKAGES,
    find("torch.compile short formula"),
)


def _measured(
    context: Context, case: Case, provider: Provider, inputs: Inputs, true: check.Truth
) -> dict[str, Any]:
    """Columns of a provider: errors, time, memory."""
    runner, columns = provider.build(case, inputs), {}
    if provider.role != "limit":
        found = check.errors(runner(), true)
        columns = {"value_error": found.value, "gradient_error": found.gradient, "note": ""}
        if not check.is_right(found, case.dtype):
            columns["note"] = f"wrong: errors of {found.value:.0e} and {found.gradient:.0e}"
    timing = context.device.time(runner, seconds=0.5, most=20)
    return {
        **columns,
        **timing._asdict(),
        "tflop_per_s": case.flops / timing.ms / 1e9,
        "peak_mb": context.device.peak_megabytes(runner),
    }


def _attempted(context: Context, *arguments: Any) -> dict[str, Any]:
    """What could be measured, or why nothing could."""
    case, provider = arguments[:2]
    if not provider.applies(case) and provider.role != "limit":
        return {"note": "does not compute this"}
    if reason := provider.missing():
        return {"note": reason}
    if provider.compiled and context.dry_run:
        return {"note": "not in a dry run"}
    try:
        return _measured(context, *arguments)
    except Exception as error:
        return {"note": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def run(context: Context) -> None:
    """All shapes with those who need no compilation, then the first one with the others.

    Fails at the end where fastdistill failed or was wrong.
    """
    ours: dict[str, float] = {}
    failures = []
    cases = list(shapes(dry_run=context.dry_run).items())
    for compiled in (False, True):
        for shape, case in cases[:1] if compiled else cases:
            torch.compiler.reset()
            context.device.free()
            inputs = build_inputs(case, context.device.torch)
            true = check.truth(case, inputs)
            for provider in (p for p in PROVIDERS if p.compiled == compiled):
                columns = _attempted(context, case, provider, inputs, true)
                context.device.free()
                if provider is OURS:
                    ours[shape] = columns.get("ms", 0.0)
                    failures += [f"{shape}: {columns['note']}"] if columns["note"] else []
                if ours.get(shape) and "ms" in columns:
                    columns["ratio_to_ours"] = columns["ms"] / ours[shape]
                context.emit(
                    "linear", shape=shape, case=case.name, provider=provider.name, **columns
                )
    if failures:
        raise SystemExit("\n".join(failures))
