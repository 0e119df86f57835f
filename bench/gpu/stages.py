"""What there is to do on a machine with a GPU, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"
"""Where the checkout is installed, built for the GPU."""
RIVALS = WORK / "rivals"
"""Where other packages are installed."""


@dataclass(frozen=True)
class Stage:
    """A part of the run, in a process of its own."""

    name: str
    limit: float
    """Seconds. A stage may also use what the stages before it left over."""


STAGES = (
    Stage("build", 90),
    Stage("wheels", 20),
    Stage("tests", 120),
    Stage("sanitizers", 60),
    Stage("ceilings", 20),
    Stage("rows", 50),
    Stage("accuracy", 30),
    Stage("repeats", 20),
    Stage("chunks", 30),
    Stage("linear", 100),
)
"""In their order. Their limits, so the whole run, add up to nine minutes."""

NAMES = tuple(stage.name for stage in STAGES)


def select(only: Sequence[str] | None, *, with_wheels: bool) -> list[Stage]:
    """The stages of those names, by default all; other packages only where there are wheels."""
    return [
        stage
        for stage in STAGES
        if stage.name in (only or NAMES) and (with_wheels or stage.name != "wheels")
    ]
