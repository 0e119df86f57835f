"""The divergences: frozen dataclasses whose call is the reference formula in plain torch.

Throughout, ``p`` is the teacher and ``q`` the student. ``divergence(log_p, log_q)`` takes
log-probabilities of shape ``(..., V)`` and returns the row value of shape ``(...)`` in nats.
The same formulas, with their derivatives, are in ``csrc/divergence.h``; the fields of a dataclass
are the members of the C++ struct of the same name, in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor


def _weighted(weight: Tensor, x: Tensor) -> Tensor:
    """``weight * x`` with 0 * inf = 0, and with a gradient that is free of NaN there."""
    positive = weight != 0
    return torch.where(positive, weight * torch.where(positive, x, 0), 0)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) summed over the last dimension."""
    a = log_a.exp()
    return _weighted(a, log_a - log_b).sum(-1)


def _log_mixture(weight: float, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(weight * a + (1 - weight) * b); -inf, with zero gradient, where both are zero."""
    neither = torch.isneginf(log_a) & torch.isneginf(log_b)
    log_mix = torch.logaddexp(
        torch.where(neither, 0, log_a) + math.log(weight),
        torch.where(neither, 0, log_b) + math.log1p(-weight),
    )
    return torch.where(neither, -math.inf, log_mix)


def _check_open_unit(owner: object, name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{type(owner).__name__}: {name} must be in (0, 1), got {value}")


@dataclass(frozen=True)
class Divergence:
    """A divergence between the teacher ``p`` and the student ``q``, in nats per token."""

    name: ClassVar[str]
    """The snake_case name that :func:`get_divergence` and ``divergence=`` accept."""

    @property
    def parameters(self) -> tuple[float, ...]:
        """The values of the fields, in the order in which the native struct holds them."""
        return tuple(float(getattr(self, field.name)) for field in fields(self))

    @property
    def needs_teacher_support(self) -> bool:
        """Whether the value is infinite wherever ``p = 0 < q``."""
        return False

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(p || q) = sum p (log p - log q). Mass-covering; Hinton et al., arXiv:1503.02531."""

    name: ClassVar[str] = "forward_kl"

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_p, log_q)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(q || p) = sum q (log q - log p). Mode-seeking; MiniLLM, arXiv:2306.08543."""

    name: ClassVar[str] = "reverse_kl"

    @property
    def needs_teacher_support(self) -> bool:
        return True

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_q, log_p)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; GKD, arXiv:2306.13649.

    ``beta`` in (0, 1) is the weight of the teacher. The value tends to 0 at both ends; the KLs are
    classes of their own. At most ln 2, reached only at ``beta = 0.5``.
    """

    name: ClassVar[str] = "jensen_shannon"
    beta: float = 0.5

    def __post_init__(self) -> None:
        _check_open_unit(self, "beta", self.beta)

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = _log_mixture(self.beta, log_p, log_q)
        return self.beta * _kl(log_p, log_m) + (1 - self.beta) * _kl(log_q, log_m)


@dataclass(frozen=True)
class SymmetricKL(Divergence):
    """weight KL(p || q) + (1 - weight) KL(q || p), ``weight`` in [0, 1]; 0.5 is Jeffreys' / 2."""

    name: ClassVar[str] = "symmetric_kl"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"SymmetricKL: weight must be in [0, 1], got {self.weight}")

    @property
    def needs_teacher_support(self) -> bool:
        return self.weight < 1.0

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        value = log_q.new_zeros(())
        if self.weight > 0.0:
            value = value + self.weight * _kl(log_p, log_q)
        if self.weight < 1.0:
            value = value + (1 - self.weight) * _kl(log_q, log_p)
        return value


@dataclass(frozen=True)
class SkewForwardKL(Divergence):
    """KL(p || m), m = alpha p + (1 - alpha) q, 0 < alpha < 1; DistiLLM, arXiv:2402.03898."""

    name: ClassVar[str] = "skew_forward_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_open_unit(self, "alpha", self.alpha)

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_p, _log_mixture(self.alpha, log_p, log_q))


@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """KL(q || m), m = alpha q + (1 - alpha) p, 0 < alpha < 1; DistiLLM, arXiv:2402.03898.

    At most -ln alpha, also where the teacher is zero.
    """

    name: ClassVar[str] = "skew_reverse_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_open_unit(self, "alpha", self.alpha)

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_q, _log_mixture(self.alpha, log_q, log_p))


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """1/2 sum |p - q| = 1 - (acceptance rate of speculative decoding), arXiv:2211.17192.

    Not differentiable where p = q; the subgradient 0 is taken there.
    """

    name: ClassVar[str] = "total_variation"

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


@dataclass(frozen=True)
class NegativeLogAcceptance(Divergence):
    """-log sum min(p, q), the negative log acceptance rate; LK losses, arXiv:2602.23881.

    Where p = q the derivative of the minimum is taken as one half of each side.
    """

    name: ClassVar[str] = "negative_log_acceptance"

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return -torch.logsumexp(torch.minimum(log_p, log_q), -1)


@dataclass(frozen=True)
class Renyi(Divergence):
    """log(sum p^alpha q^(1 - alpha)) / (alpha - 1), alpha > 0 and not 1.

    Its gradient is that of TAID (arXiv:2501.16937) at interpolation ``t = alpha``.
    """

    name: ClassVar[str] = "renyi"
    alpha: float

    def __post_init__(self) -> None:
        if not (0.0 < self.alpha < math.inf and self.alpha != 1.0):
            raise ValueError(f"Renyi: alpha must be > 0 and not 1, got {self.alpha}")

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        absent = torch.isneginf(log_p)
        log_term = self.alpha * log_p + (1 - self.alpha) * torch.where(absent, 0, log_q)
        return torch.logsumexp(log_term, -1) / (self.alpha - 1)


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """-1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], a, b > 0; arXiv:2505.04560."""

    name: ClassVar[str] = "alpha_beta"
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"AlphaBeta: {name} must be > 0, got {getattr(self, name)}")

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        a, b = self.alpha, self.beta
        both = (a * log_p + b * log_q).exp()
        each = (a * ((a + b) * log_p).exp() + b * ((a + b) * log_q).exp()) / (a + b)
        return (each - both).sum(-1) / (a * b)


ALL: tuple[type[Divergence], ...] = (
    ForwardKL,
    ReverseKL,
    SymmetricKL,
    JensenShannon,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    NegativeLogAcceptance,
    Renyi,
    AlphaBeta,
)
"""Every divergence class."""


def get_divergence(name: str, **parameters: float) -> Divergence:
    """Build a divergence by its snake_case name: ``get_divergence("jensen_shannon", beta=0.1)``."""
    for cls in ALL:
        if cls.name == name:
            return cls(**parameters)
    known = ", ".join(cls.name for cls in ALL)
    raise ValueError(f"divergence must be one of {known}; got {name!r}")
