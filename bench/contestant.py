"""One of two builds that are compared: a process that passes over a case whenever it is told to.

``python -m bench.contestant`` is that process. It reads a case, says which package it imported, and
for each further line makes two passes and prints the seconds of the second.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import fastdistill as fd

from .cases import Case
from .document import ROOT
from .inputs import build_inputs
from .measure import time_once
from .provider import OURS
from .revision import importing_from


class Contestant:
    """The parent's end of the process; ``target`` is where it imports fastdistill from."""

    def __init__(self, case: Case, target: Path | None) -> None:
        command, environment = importing_from(target)
        self._process = subprocess.Popen(
            [*command, "-m", "bench.contestant"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._send(pickle.dumps((case, torch.get_num_threads())))

    def package(self) -> Path:
        """Where it imported fastdistill from; to be asked once, before the first turn."""
        return Path(self._answer())

    def turn(self) -> float:
        """Seconds of a pass that comes after another one."""
        self._send(b"\n")
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench.contestant ended with {self._process.wait()}")
        return line.decode().strip()


def _serve(source: Any) -> None:
    case, threads = pickle.load(source)
    torch.set_num_threads(threads)
    print(fd.__file__, flush=True)
    runner = OURS.build(case, build_inputs(case))
    for _ in source:
        runner()
        print(time_once(runner), flush=True)


if __name__ == "__main__":
    _serve(sys.stdin.buffer)
