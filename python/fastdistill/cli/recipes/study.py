"""A study: parts that are each done once, so that one of forty minutes can be interrupted."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fastdistill._show_config import config as build_config

from .. import checkpoint
from ..config import check_same_run
from ..models import load_teacher
from ..report import progress_bar
from ..training import Training, train
from .settings import Settings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CHECKPOINT_EVERY = 25


class Study:
    """The parts of a recipe in their order, and what those done already have found.

    A recipe calls :meth:`once` for whatever takes time and :meth:`train` for its students. Both
    return at once what the checkpoint in ``output`` holds.
    """

    def __init__(
        self,
        settings: Settings,
        teacher: Path | None,
        output: Path,
        console: Console,
        *,
        resume: bool,
    ) -> None:
        self.settings = settings
        self.console = console
        self._teacher = teacher
        self._output = output
        saved = checkpoint.open_run(output, resume) or {"found": {}, "seconds": 0.0}
        if "config" in saved:
            check_same_run(settings, saved["config"], options=("teacher", "dtype"))
        self._found: dict[str, Any] = saved["found"]
        self._saved_training: dict[str, Any] = saved.get("training", {})
        self._training: tuple[str, Training] | None = None
        self._inside_part = False
        self._started = time.perf_counter() - saved["seconds"]
        self._print_settings()

    def load_teacher(self) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
        """The teacher that the settings name, frozen, and its tokenizer."""
        with self.console.status("loading the teacher"):
            return load_teacher(self._teacher, self.settings.torch_dtype)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What ``find()`` returned, now or before the run was interrupted.

        That is a tensor, a number, a string, None, or a list or dict of such. A training that
        ``find`` begins ends with it: nothing else of it is kept. A part of a part is written with
        the next checkpoint of the training or the whole part: until then it is lost with them.
        """
        if name not in self._found:
            outside = self._training, self._inside_part
            self._inside_part = True
            found = find()
            self._training, self._inside_part = outside
            self._found[name] = found
            if not self._inside_part:
                self._save()
        return self._found[name]

    def train(self, name: str, training: Training, steps: int) -> None:
        """Train until ``steps`` are taken in all; one training is under way at a time.

        ``name`` is that of the training, the same for each of its stretches.
        """
        if self._training is None or self._training[1] is not training:
            self._training = (name, training)
            if self._saved_training.get("name") == name:
                training.load_state_dict(self._saved_training["state"])
                self._saved_training = {}

        with progress_bar(self.console, len(training.losses), steps, name) as on_step:
            train(training, steps, self._save, CHECKPOINT_EVERY, on_step)
        # What a part finds is saved when it ends, in place of the student that it trained.
        if not self._inside_part:
            self._save()

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the report, remove the checkpoint, and return what was written.

        ``results`` go in beside the settings, the machine and the seconds that all parts took.
        """
        report = {
            "recipe": self.settings.name,
            "settings": asdict(self.settings),
            "machine": _machine(),
            "seconds": round(time.perf_counter() - self._started),
            **results,
        }
        text = json.dumps(report, indent=1) + "\n"
        checkpoint.write_report(self._output, text)
        checkpoint.remove(self._output)
        return report

    def _save(self) -> None:
        state = {
            "config": asdict(self.settings),
            "found": self._found,
            "seconds": time.perf_counter() - self._started,
        }
        if self._training is not None:
            name, training = self._training
            state["training"] = {"name": name, "state": training.state_dict()}
        checkpoint.save(self._output, state)

    def _print_settings(self) -> None:
        table = Table("setting", "value", title=f"recipe {self.settings.name}")
        for name, value in asdict(self.settings).items():
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            table.add_row(name, shown)
        self.console.print(table)


def _machine() -> dict[str, Any]:
    """What the times of a report depend on."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        described = ""
    name = re.search(r"^model name\s*:\s*(.*)$", described, re.MULTILINE)
    return {"processor": name[1] if name else platform.machine(), **build_config()}
