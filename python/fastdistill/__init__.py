"""Distillation losses for language models, exact and without the (tokens x vocabulary) logits."""

import torch  # noqa: F401  (first: it brings the libgomp that the kernels share)

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "the compiled part of fastdistill cannot be loaded; was it built? (pip install .)"
    ) from error

from . import divergences, reference
from ._show_config import show_config
from .divergences import (
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    NegativeLogAcceptance,
    Renyi,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
    get_divergence,
)
from .functional import distillation_loss, linear_distillation_loss
from .losses import DistillationLoss, LinearDistillationLoss
from .metrics import Metrics
from .students import StudentHead
from .teachers import SampledTeacher, TeacherHead, TeacherLogits, TopKTeacher

__version__: str = _C.VERSION

__all__ = [
    "AlphaBeta",
    "DistillationLoss",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "LinearDistillationLoss",
    "Metrics",
    "NegativeLogAcceptance",
    "Renyi",
    "ReverseKL",
    "SampledTeacher",
    "SkewForwardKL",
    "SkewReverseKL",
    "StudentHead",
    "SymmetricKL",
    "TeacherHead",
    "TeacherLogits",
    "TopKTeacher",
    "TotalVariation",
    "distillation_loss",
    "divergences",
    "get_divergence",
    "linear_distillation_loss",
    "reference",
    "show_config",
]
