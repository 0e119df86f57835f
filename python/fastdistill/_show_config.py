"""What this build is and what it uses here."""

from __future__ import annotations

import platform

import torch

from . import _C


def show_config() -> None:
    """Print version, compiler, CPU instruction sets, CUDA backend and threads."""
    facts = {
        "fastdistill": _C.VERSION,
        "compiler": _C.COMPILER,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu instruction set": f"{_C.current_isa()} (available: {', '.join(_C.available_isas())})",
        "cuda": _C.CUDA or "none: this build has no CUDA backend (FD_CUDA=ON builds it)",
        "threads": str(torch.get_num_threads()),
    }
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
