"""Time and memory of a run, on the GPU by its own clock, or on the CPU for a dry run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..measure import percentiles, time_once

Run = Callable[[], object]


class Timing(NamedTuple):
    """Percentiles of the times of some runs, in milliseconds."""

    runs: int
    ms_p20: float
    ms: float
    ms_p80: float


class Device:
    """Where a stage runs."""

    def __init__(self, kind: str) -> None:
        self.torch = torch.device(kind)
        self.is_gpu = kind == "cuda"
        self._flushed: torch.Tensor | None = None

    def describe(self) -> dict[str, str]:
        """Name and properties, by what they are."""
        if not self.is_gpu:
            return {"device": "cpu"}
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 1e9:.1f} GB",
            "L2 cache": f"{properties.L2_cache_size / 1e6:.1f} MB",
            "CUDA of torch": str(torch.version.cuda),
        }

    @property
    def multiprocessors(self) -> int:
        """Of the GPU; one where a dry run has none."""
        return torch.cuda.get_device_properties(0).multi_processor_count if self.is_gpu else 1

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def time(self, run: Run, *, seconds: float = 0.3, least: int = 5, most: int = 50) -> Timing:
        """Time ``least`` to ``most`` runs in about ``seconds``, after two that do not count."""
        if not self.is_gpu:
            run()
            times = [time_once(run) for _ in range(2)]
        else:
            run()
            self.synchronize()
            once = time_once(lambda: (run(), self.synchronize()))
            times = self._event_seconds(run, max(least, min(most, int(seconds / once))))
        return Timing(len(times), *percentiles(times, 1e3))

    def _event_seconds(self, run: Run, repeats: int) -> list[float]:
        """By events around each run, before which the L2 cache is flushed.

        All runs are queued before any is waited for: flushing gives the host time to stay ahead.
        """
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, stop in pairs:
            self._flush()
            start.record()
            run()
            stop.record()
        self.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]

    def _flush(self) -> None:
        """Read more than the L2 cache holds; nothing is left there to be written back."""
        if self._flushed is None:
            size = max(512 << 20, 4 * torch.cuda.get_device_properties(0).L2_cache_size)
            self._flushed = torch.zeros(size // 4, device=self.torch)
        self._flushed.sum()

    def peak_megabytes(self, run: Run) -> float | None:
        """Peak memory of a run beyond what was allocated before, its results included."""
        if not self.is_gpu:
            return None
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        self.synchronize()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def free(self) -> None:
        """Give back the memory that nothing refers to."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
