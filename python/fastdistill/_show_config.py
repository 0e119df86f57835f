"""What this build is and what it uses here."""

from __future__ import annotations

import platform
from typing import Any

import torch

from . import _C


def config() -> dict[str, Any]:
    """The facts that :func:`show_config` prints, as what JSON can hold; ``cuda`` may be None."""
    return {
        "fastdistill": _C.VERSION,
        "compiler": _C.COMPILER,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_instruction_set": _C.current_isa(),
        "available_instruction_sets": _C.available_isas(),
        "cuda": _C.CUDA or None,
        "threads": torch.get_num_threads(),
    }


def show_config() -> None:
    """Print version, compiler, CPU instruction sets, CUDA backend and threads."""
    facts = config()
    available = ", ".join(facts.pop("available_instruction_sets"))
    facts["cpu_instruction_set"] += f" (available: {available})"
    facts["cuda"] = facts["cuda"] or "none: this build has no CUDA backend (FD_CUDA=ON builds it)"
    width = max(map(len, facts))
    print("\n".join(f"{name.replace('_', ' '):<{width}}  {fact}" for name, fact in facts.items()))
