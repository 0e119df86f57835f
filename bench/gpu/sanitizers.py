"""The kernels under compute-sanitizer: wrong addresses, races, reads of what nobody wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys

from .build import build_environment
from .stages import ROOT
from .worker import Context

TOOLS = ("memcheck", "racecheck", "initcheck")
_SANITIZER = "compute-sanitizer"


def _start(tool: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    command = [_SANITIZER, "--tool", tool, "--error-exitcode", "1"]
    return subprocess.Popen(
        [*command, sys.executable, "-m", "bench.gpu.small"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor has its own bounds
    )  # fmt: skip


def run(context: Context) -> None:
    """All tools side by side; fails at the end if one of them found something."""
    environ = build_environment("native")
    found = shutil.which(_SANITIZER, path=environ["PATH"])
    if context.dry_run or found is None:
        context.emit("sanitizer", tool=_SANITIZER, summary="not here" if found is None else "here")
        return
    processes = {tool: _start(tool, environ) for tool in TOOLS}
    failed = []
    for tool, process in processes.items():
        output, _ = process.communicate()
        print(output, flush=True)
        context.emit("sanitizer", tool=tool, summary=output.strip().rpartition("\n")[2])
        failed += [tool] if process.returncode else []
    if failed:
        raise SystemExit(f"{', '.join(failed)} found something")
