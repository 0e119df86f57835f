"""GOLDTrainer of trl.experimental.gold."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from trl.experimental import gold

from ._loss import HeadLoss

_TrlTrainer: Any = gold.GOLDTrainer


class GOLDTrainer(HeadLoss, _TrlTrainer):  # type: ignore[misc]
    """TRL's GOLDTrainer without the logits of either model, where both share a tokenizer.

    The loss is TRL's: at ``temperature``, and with the divisor that :class:`GKDTrainer` has. What
    needs the logits is TRL's own path: ``use_uld_loss``, which sorts and merges the probabilities
    of two vocabularies, and ``compute_loss(return_outputs=True)``.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        across_tokenizers = self.use_uld_loss and self.teacher_tokenizer is not None
        if return_outputs or across_tokenizers:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        batch |= self._get_model_forward_kwargs(inputs)  # of vision-language models
        return self._head_loss(model, batch, num_items_in_batch, self.temperature)
