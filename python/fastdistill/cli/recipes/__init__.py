"""Recipes: studies on a real model of where distillation is used every day.

* ``draft``: draft models for speculative decoding, and which loss gets them accepted
* ``on-policy``: the student samples, the teacher scores
* ``qat``: an int4 student, distilled from its own original

A recipe is a module with ``Settings``, ``quick`` (those of a short run) and ``run(study)``, and one
of tables, with ``show(report, console)`` and ``markdown(report)``. What takes time to find goes
through a :class:`~.study.Study`, which keeps it in a checkpoint.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..models import check_packages
from .study import Study

RecipeChoice = Literal["draft", "on-policy", "qat"]


def run_recipe(
    recipe: RecipeChoice,
    output: Path,
    console: Console,
    *,
    dtype: str,
    teacher: Path | None = None,
    quick: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a recipe, print its tables, and return what ``report.json`` in ``output`` then holds."""
    path = f".{recipe.replace('-', '_')}"
    module = importlib.import_module(path, __name__)
    tables = importlib.import_module(f"{path}_tables", __name__)
    check_packages(teacher, module.Settings.packages)
    name = str(teacher or "SmolLM2-135M-Instruct")
    settings = module.quick(name, dtype) if quick else module.Settings(name, dtype)
    study = Study(settings, teacher, output, console, resume=resume)
    report = study.finish(module.run(study))
    tables.show(report, console)
    return report
