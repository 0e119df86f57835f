"""What the three trainers share: the divergence of a beta, the loss of two models, its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from ...metrics import Metrics
from .._causal import CausalLoss, MetricSums, check_heads_are_whole, metric_values


def divergence_for(beta: float) -> Divergence:
    """What TRL's ``beta`` (arXiv:2306.13649) means.

    0 is KL(teacher || student), 1 is KL(student || teacher). Between them, with
    m = beta p + (1 - beta) q, it is beta KL(p || m) + (1 - beta) KL(q || m), which tends to 0 at
    both ends: TRL's loss jumps there, and so does this one.
    """
    if beta == 0:
        return ForwardKL()
    return ReverseKL() if beta == 1 else JensenShannon(beta)


class LossMetrics:
    """Mixin of a TRL trainer that logs the metrics of its loss beside TRL's own.

    Raises:
        ValueError: at construction, under FSDP or DeepSpeed ZeRO-3: a head is read outside of its
            module, where a process has only a shard of it.
    """

    accelerator: Any
    model: Any
    _metrics: dict[str, dict[str, list[float]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_heads_are_whole(self)
        self._sums = {"train": MetricSums(), "eval": MetricSums()}

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _add_metrics(self, metrics: Metrics, num_items: float | Tensor | None) -> None:
        self._sums[self._mode()].add(metric_values(metrics), num_items)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = self._mode()
        averages = self._sums[mode].take(lambda sums: self.accelerator.reduce(sums, "sum"))
        self._metrics[mode] |= {name: [value] for name, value in averages.items()}
        super().log(logs, start_time)  # type: ignore[misc]


class HeadLoss(LossMetrics):
    """Mixin of a TRL trainer that would run both models to their logits: they stop at the head."""

    beta: float
    teacher_model: nn.Module

    def _head_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items: float | Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The loss over the tokens whose label is not -100."""
        self.teacher_model.eval()
        loss = CausalLoss({"divergence": divergence_for(self.beta), "temperature": temperature})
        with self.accelerator.autocast():
            value, metrics = loss(model, self.teacher_model, inputs, num_items)
        self._add_metrics(metrics, num_items)
        return value
