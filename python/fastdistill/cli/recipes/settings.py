"""The settings of a recipe: everything that its results depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Settings:
    """Common to all recipes; each adds its own. The defaults are those of the full study."""

    name: ClassVar[str]
    """Of the recipe, as after ``--recipe``."""
    packages: ClassVar[Mapping[str, str]] = {}
    """Needed besides those of the main job, each with what pip is told to install it."""

    teacher: str
    dtype: str
    """Of the GEMMs: bfloat16 or float32."""
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the GEMMs of all models."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
