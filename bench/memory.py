"""Peak extra memory of one pass, as the kernel counts it, in a process of its own.

``python -m bench.memory`` is that process. It reads a job; when the inputs are there it resets the
peak of its resident memory, prints it, makes one pass, and prints the new peak.
"""

from __future__ import annotations

import ctypes
import gc
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from .cases import Case
from .inputs import build_inputs
from .provider import Provider

ROOT = Path(__file__).resolve().parents[1]
_EAGER_COPIES = 12
"""Float32 tensors of the size of the logits that plain torch holds at its peak, about."""

_FEW_ROWS, _FEW_TOKENS = 32, 1024
"""A pass that small loads what is loaded at the first use of anything."""


class Peak(NamedTuple):
    """Peak memory beyond the inputs; the gradients that were asked for are part of it."""

    megabytes: float
    complete: bool  # False: stopped before its end, the peak may be higher


def resident_peak(process: int | str = "self") -> int:
    """Bytes: the largest resident memory of a process since its start or its last reset."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def reset_resident_peak() -> int:
    """Give free memory back, let the peak start anew, and return it in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def unaffordable(case: Case, provider: Provider) -> str | None:
    """Why a pass would not fit into memory, or None."""
    if not case.has_head or provider.role == "ours":
        return None
    needed = _EAGER_COPIES * 4 * case.rows * case.vocab
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    if needed < 0.9 * free:
        return None
    return f"memory: predicted to need {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB"


def measure_peak(case: Case, provider: Provider, timeout: float) -> Peak:
    """Run the case in a process of its own, for at most ``timeout`` seconds."""
    job = pickle.dumps((case, provider.name, torch.get_num_threads()))
    command = [sys.executable, "-m", "bench.memory"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT)
    try:
        output, _ = process.communicate(job, timeout)
        stopped_at = None
    except subprocess.TimeoutExpired:
        stopped_at = resident_peak(process.pid)
        process.kill()
        output, _ = process.communicate()
    peaks = [int(line) for line in output.split()]
    if not peaks or (stopped_at is None and len(peaks) != 2):
        raise RuntimeError(f"no measurement of {case.name} by {provider.name}")
    before, after = (peaks[0], peaks[1] if stopped_at is None else stopped_at)
    return Peak((after - before) / 1e6, stopped_at is None)


def _child(case: Case, provider: Provider) -> None:
    if not provider.compiled:
        few = replace(case, rows=_FEW_ROWS, vocab=max(_FEW_TOKENS, case.listed), text=False)
        provider.build(few, build_inputs(few))()
    runner = provider.build(case, build_inputs(case))
    if provider.compiled:
        runner()
    print(reset_resident_peak(), flush=True)
    runner()
    print(resident_peak(), flush=True)


if __name__ == "__main__":
    from .providers import find as find_provider

    case, name, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    _child(case, find_provider(name))
