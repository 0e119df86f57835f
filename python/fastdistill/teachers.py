"""What a loss can learn from: logits, a head, or a list of the most likely tokens."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ._model_head import run_to_head
from ._options import FLOATING, check_positive, check_transform

Tail = Literal["bucket", "renormalize", "zero", "uniform"]
TAILS: tuple[str, ...] = get_args(Tail)


def _as_tensor(owner: object, name: str) -> Tensor:
    """The field as a tensor; numpy arrays are shared, not copied."""
    value: Any = getattr(owner, name)
    if not isinstance(value, Tensor):
        if type(value).__module__ != "numpy":
            raise TypeError(
                f"{type(owner).__name__}: {name} must be a tensor or a numpy array, "
                f"got {type(value).__name__}"
            )
        value = torch.from_numpy(value)
        object.__setattr__(owner, name, value)
    return value  # type: ignore[no-any-return]


def _check_floating(owner: object, name: str, value: Tensor) -> None:
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{type(owner).__name__}: {name} must be float32, bfloat16, float16 or float64, "
            f"got {value.dtype}"
        )


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """A teacher whose logits are in memory.

    Args:
        logits: ``(..., V)`` floating point, the student's leading shape.
        softcap: the teacher's logits are ``c * tanh(scale * logits / c)``; None for no cap.
        scale: logit scale, applied before the softcap.
        valid_vocab: ids ``>= valid_vocab`` do not exist, for the teacher and for the student.
    """

    logits: Tensor
    _: KW_ONLY
    softcap: float | None = None
    scale: float = 1.0
    valid_vocab: int | None = None

    def __post_init__(self) -> None:
        _check_floating(self, "logits", _as_tensor(self, "logits"))
        check_transform(f"{type(self).__name__}: ", self.softcap, self.scale, self.valid_vocab)


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """A teacher given by its last hidden states and its head; its logits are never materialised.

    Args:
        hidden: ``(..., D_t)`` floating point, the student's leading shape.
        weight: ``(V, D_t)``, the head (``lm_head.weight``).
        bias: ``(V,)`` or None.
        softcap, scale, valid_vocab: as for :class:`TeacherLogits`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _: KW_ONLY
    softcap: float | None = None
    scale: float = 1.0
    valid_vocab: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "weight"):
            _check_floating(self, name, _as_tensor(self, name))
        check_transform(f"{type(self).__name__}: ", self.softcap, self.scale, self.valid_vocab)
        if self.weight.dim() != 2 or self.hidden.shape[-1:] != self.weight.shape[1:]:
            raise ValueError(
                "TeacherHead: hidden (..., D) and weight (V, D) must have the same D, "
                f"got {tuple(self.hidden.shape)} and {tuple(self.weight.shape)}"
            )
        if self.bias is None:
            return
        _check_floating(self, "bias", _as_tensor(self, "bias"))
        if self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"TeacherHead: bias must have shape {tuple(self.weight.shape[:1])}, "
                f"got {tuple(self.bias.shape)}"
            )

    @classmethod
    @torch.no_grad()
    def from_model(
        cls, model: nn.Module, *, valid_vocab: int | None = None, **inputs: Any
    ) -> TeacherHead:
        """Run a Hugging Face causal model up to its head; its logits are never made.

        No graph is recorded. The model's mode is left as it is: call ``model.eval()`` before.
        Arguments and errors are those of :meth:`StudentHead.from_model`.
        """
        return cls(**run_to_head(model, inputs, valid_vocab)._asdict())


@dataclass(frozen=True, eq=False)
class TopKTeacher:
    """A teacher of which only some tokens are known.

    Args:
        ids: ``(..., K)`` integer, distinct within a row; -1 marks an empty slot.
        log_probs: ``(..., K)``, full-vocabulary log-probabilities of ``ids`` at ``temperature``;
            -inf marks an empty slot.
        tail: what the unlisted tokens are. ``"bucket"``: one category on both sides;
            ``"renormalize"``: both sides are conditioned on the listed ids; ``"zero"``: they have
            teacher probability 0; ``"uniform"``: they share the tail mass evenly.
        temperature: at which ``log_probs`` were taken.
        tail_log_prob: ``(...)``, log of the unlisted mass at the temperature of the loss; None
            computes it from ``log_probs``, which is possible at their own temperature only.

    ``ids``, ``log_probs`` and ``tail_log_prob`` may be numpy arrays.
    """

    ids: Tensor
    log_probs: Tensor
    _: KW_ONLY
    tail: Tail = "bucket"
    temperature: float = 1.0
    tail_log_prob: Tensor | None = None

    def __post_init__(self) -> None:
        ids = _as_tensor(self, "ids")
        _check_list(self, ids, "log_probs", _as_tensor(self, "log_probs"))
        if self.tail not in TAILS:
            raise ValueError(f"TopKTeacher: tail must be one of {TAILS}, got {self.tail!r}")
        check_positive("TopKTeacher: temperature", self.temperature)
        if self.tail_log_prob is not None:
            tail = _as_tensor(self, "tail_log_prob")
            _check_floating(self, "tail_log_prob", tail)
            if tail.shape != ids.shape[:-1]:
                raise ValueError(
                    f"TopKTeacher: tail_log_prob must have shape {tuple(ids.shape[:-1])}, "
                    f"got {tuple(tail.shape)}"
                )


@dataclass(frozen=True, eq=False)
class SampledTeacher:
    """Tokens drawn from the teacher, with weights that estimate its probabilities without bias.

    Args:
        ids: ``(..., K)`` integer, distinct within a row; -1 marks an empty slot.
        weights: ``(..., K)`` >= 0; ``E[weights] = p`` on the ids (random-sampling distillation,
            arXiv:2503.16870). They need not sum to one.

    Only divergences that are linear in ``p`` accept it. The value reported is the cross entropy
    ``-sum weights log q``, because the entropy of a sample is no estimate of the teacher's.
    """

    ids: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        _check_list(self, _as_tensor(self, "ids"), "weights", _as_tensor(self, "weights"))


def _check_list(owner: object, ids: Tensor, name: str, values: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{type(owner).__name__}: ids must be integers, got {ids.dtype}")
    _check_floating(owner, name, values)
    if ids.dim() < 1 or ids.shape != values.shape or ids.shape[-1] < 1:
        raise ValueError(
            f"{type(owner).__name__}: ids and {name} must have the same shape (..., K) with "
            f"K >= 1, got {tuple(ids.shape)} and {tuple(values.shape)}"
        )


Teacher = TeacherLogits | TeacherHead | TopKTeacher | SampledTeacher
_KINDS = get_args(Teacher)


def as_teacher(teacher: Teacher | Tensor) -> Teacher:
    """A bare tensor means :class:`TeacherLogits`."""
    if isinstance(teacher, Tensor):
        return TeacherLogits(teacher)
    if not isinstance(teacher, _KINDS):
        raise TypeError(
            "teacher must be a tensor, TeacherLogits, TeacherHead, TopKTeacher or SampledTeacher, "
            f"got {type(teacher).__name__}"
        )
    return teacher  # type: ignore[no-any-return]


def tail_mass(log_probs: Tensor) -> Tensor:
    """Log of the mass that ``log_probs`` (..., K) leave, in float64.

    A rest below the rounding of a float32 sum is not known to be zero: it counts as 2^-24, so that
    rounding alone cannot make a tail impossible.
    """
    resolution = 2.0**-53 if log_probs.dtype == torch.float64 else 2.0**-24
    listed = log_probs.double().exp().sum(-1)
    return torch.log((1.0 - listed).clamp_min(resolution))


def retemper(log_probs: Tensor, ratio: float, tail_log_prob: Tensor) -> Tensor:
    """Listed log-probabilities at ``ratio`` = old / new temperature, given the new tail."""
    listed = torch.log_softmax(log_probs.double() * ratio, -1)
    mass = torch.log1p(-tail_log_prob.double().exp())
    return listed + mass.unsqueeze(-1)
