"""``python -m bench.gpu.worker STAGE RECORDS``: the process of a stage."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .device import Device
from .stages import NAMES, ROOT

_WITHOUT_FASTDISTILL = ("build", "wheels", "tests", "sanitizers")


@dataclass(frozen=True)
class Context:
    """What the module of a stage works with."""

    device: Device
    dry_run: bool
    wheels: Path | None
    emit: Callable[..., None]
    """``emit(what, **columns)`` adds a record, which is kept whatever happens afterwards."""


def _emitter(path: Path) -> Callable[..., None]:
    def emit(what: str, **columns: Any) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"what": what, **columns}) + "\n")

    return emit


def _from_root(path: Path) -> str:
    """Nothing that only this machine has, if the path is within the checkout."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _facts(stage: str, device: Device) -> dict[str, str]:
    """Device and software that the numbers depend on."""
    facts = device.describe() | {"torch": torch.__version__}
    if stage in _WITHOUT_FASTDISTILL:
        return facts
    import fastdistill as fd

    from ..report import header

    return (
        header()
        | facts
        | {
            "cuda backend": fd._C.CUDA or "none",
            "imported from": _from_root(Path(fd.__file__).parent),
        }
    )


def main() -> None:
    """Run the module of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=NAMES)
    parser.add_argument("records", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--wheels", type=Path)
    arguments = parser.parse_args()
    if not (arguments.dry_run or torch.cuda.is_available()):
        raise SystemExit("torch finds no GPU here: --dry-run runs on the CPU")
    device = Device("cpu" if arguments.dry_run else "cuda")
    emit = _emitter(arguments.records)
    emit("facts", **_facts(arguments.stage, device))
    stage = importlib.import_module(f".{arguments.stage}", __package__)
    stage.run(Context(device, arguments.dry_run, arguments.wheels, emit))


if __name__ == "__main__":
    main()
