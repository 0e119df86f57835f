"""GKDTrainer of trl.experimental.gkd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from trl.experimental import gkd

from ._loss import HeadLoss

_TrlTrainer: Any = gkd.GKDTrainer


class GKDTrainer(HeadLoss, _TrlTrainer):  # type: ignore[misc]
    """TRL's GKDTrainer (arXiv:2306.13649) without the logits of either model.

    The loss is TRL's. ``temperature`` is that of sampling alone. The sum over tokens is divided by
    the number of labels in the data, also where generated completions have replaced them; on P
    processes that number is of all of them while DDP averages over them, so gradients are 1/P of
    the mean's. ``compute_loss(return_outputs=True)``, which ``compute_metrics`` needs, asks for the
    logits: it is TRL's own path.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        return self._head_loss(model, batch, num_items_in_batch)
