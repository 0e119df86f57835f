"""What the machine can do at best, measured in the same run: memory and exponentials."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

import fastdistill as fd
from fastdistill._native import fresh

from .cases import Case
from .gemms import median_seconds
from .inputs import Inputs
from .provider import Provider, Runner

_CALLS = 256


@dataclass(frozen=True)
class Machine:
    """Rates of this machine, with the threads of torch."""

    copy: float  # bytes/s of a copy, read and written bytes both counted
    read: float  # bytes/s of a sum
    fresh: float  # bytes/s of the first writing of memory that is new, behind huge pages
    exps: float  # exponentials/s in float32: those of one thread, times the threads

    def describe(self) -> dict[str, str]:
        """The rates with their units, for a header."""
        return {
            "copy bandwidth": f"{self.copy / 1e9:.1f} GB/s",
            "read bandwidth": f"{self.read / 1e9:.1f} GB/s",
            "first write to fresh memory": f"{self.fresh / 1e9:.1f} GB/s",
            "exp throughput": f"{self.exps / 1e9:.2f} G/s",
        }

    def seconds(self, case: Case) -> float:
        """Least time of a case on logits but for FRESH_GRADIENT: memory or exponentials."""
        bandwidth = self.copy if case.backward else self.read
        return max(case.bytes / bandwidth, case.exps / self.exps)


def _build_fresh_gradient(case: Case, inputs: Inputs) -> Runner:
    (logits,) = inputs.leaves.values()
    return lambda: (fresh(logits, *logits.shape).zero_(),)


FRESH_GRADIENT = Provider(
    "fresh gradient",
    _build_fresh_gradient,
    role="limit",
    applies=lambda case: case.backward and not case.has_head,
)
"""Memory for the gradient of logits, touched for the first time. It takes part in the turns, since
what the system asks for it depends on what happened before."""


def _exps_per_second(short: int = 1 << 10, long: int = 3 << 10) -> float:
    """Of one thread, on numbers that stay in its first cache.

    A call costs as much as hundreds of them, so two lengths are timed and their difference counts.
    """
    x, y = torch.linspace(-20, 0, long), torch.empty(long)

    def seconds(n: int) -> float:
        arguments = (fd._C.Elementary.exp, x.data_ptr(), y.data_ptr(), n)
        start = time.perf_counter()
        for _ in range(_CALLS):
            fd._C.evaluate(*arguments)
        return time.perf_counter() - start

    more = median(seconds(long) - seconds(short) for _ in range(51))
    return _CALLS * (long - short) / more


def measure_machine(size: int = 256 << 20) -> Machine:
    """Rates on buffers of ``size`` bytes, which should be many times the last cache."""
    source = torch.zeros(size // 4)
    target = torch.zeros_like(source)
    return Machine(
        copy=2 * size / median_seconds(lambda: target.copy_(source)),
        read=size / median_seconds(source.sum),
        fresh=size / median_seconds(lambda: fresh(source, size // 4).fill_(0)),
        exps=_exps_per_second() * torch.get_num_threads(),
    )
