"""What the user sees while a run goes on and when it is over."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .checkpoint import write_report
from .config import RunConfig
from .evaluation import Quality

LINE_EVERY = 10
SPEED_WINDOW_SECONDS = 300.0


@dataclass(frozen=True)
class RunReport:
    """The outcome of a run; ``report.json`` holds the same."""

    config: RunConfig
    before: Quality
    after: Quality
    tokens_per_second: float
    """Of training, without evaluation and checkpoints."""
    peak_memory_bytes: int
    """Largest resident size of the process up to the end of training."""
    losses: list[float]
    """One per step, nats per token."""

    def to_json(self) -> str:
        """One object with the fields as keys."""
        return json.dumps(asdict(self), indent=1)

    def write(self, output: Path) -> None:
        """Write ``report.json``."""
        write_report(output, self.to_json() + "\n")

    def print(self, console: Console) -> None:
        """Print the table of held-out quality and the cost of training."""
        table = Table("held-out text", "before", "after")
        for label, name in _ROWS:
            table.add_row(label, *(f"{getattr(q, name):.3f}" for q in (self.before, self.after)))
        console.print(table)
        console.print(
            f"teacher perplexity {self.after.teacher_perplexity:.2f}   "
            f"{self.tokens_per_second:.0f} tokens/s   "
            f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB",
            soft_wrap=True,
        )


_ROWS = (
    ("KL(teacher || student), nats", "kl"),
    ("top-1 agreement", "top1_agreement"),
    ("acceptance rate, 1 - TVD", "acceptance_rate"),
    ("perplexity", "perplexity"),
)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def progress_bar(
    console: Console, done: int, steps: int, label: str = "training"
) -> Iterator[Callable[[int, float], None]]:
    """A bar with loss and ETA; where the output is no terminal, a line every few steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    progress = Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=SPEED_WINDOW_SECONDS,
    )
    prefix = "" if label == "training" else f"{label}: "
    with progress:
        task = progress.add_task(label, total=steps, completed=done, loss=float("nan"))

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss)
            if not console.is_terminal and (step % LINE_EVERY == 0 or step == steps):
                console.print(f"{prefix}step {step}/{steps} loss {loss:.4f}")

        yield on_step
