"""TRL's distillation trainers, with the same names and arguments, without the logits of the heads.

One line changes: ``from fastdistill.integrations.trl import DistillationTrainer`` in place of
``from trl import DistillationTrainer``; likewise ``GKDTrainer`` (``trl.experimental.gkd``) and
``GOLDTrainer`` (``trl.experimental.gold``). Configurations, data, generation and buffering are
TRL's, and so are the values of loss and gradients. TRL is imported when a trainer is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distillation import DistillationTrainer
    from .gkd import GKDTrainer
    from .gold import GOLDTrainer

__all__ = ["DistillationTrainer", "GKDTrainer", "GOLDTrainer"]

_MODULES = {"DistillationTrainer": "distillation", "GKDTrainer": "gkd", "GOLDTrainer": "gold"}
"""A module for each, because importing trl.experimental warns."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import_module("trl")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs TRL: pip install trl") from error
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
