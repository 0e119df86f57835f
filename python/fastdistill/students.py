"""A student given by its last hidden states and its head, as a model gives them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor, nn

from ._model_head import run_to_head
from .functional import linear_distillation_loss
from .teachers import Teacher


@dataclass(frozen=True, eq=False)
class StudentHead:
    """The student's side of :func:`linear_distillation_loss`, out of one place.

    Args:
        hidden: ``(..., D_s)``, the last hidden states.
        weight: ``(V, D_s)``, the head.
        bias: ``(V,)`` or None.
        softcap, scale, valid_vocab: ``student_softcap``, ``student_scale`` and
            ``student_valid_vocab`` of the loss.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _: KW_ONLY
    softcap: float | None = None
    scale: float = 1.0
    valid_vocab: int | None = None

    @classmethod
    def from_model(
        cls, model: nn.Module, *, valid_vocab: int | None = None, **inputs: Any
    ) -> StudentHead:
        """Run a Hugging Face causal model up to its head; its logits are never made.

        Args:
            model: a causal language model of transformers, also within peft,
                DistributedDataParallel or torch.compile.
            valid_vocab: ids ``>= valid_vocab`` do not exist, although the head has rows for them.
            inputs: the model's inputs (``input_ids``, ``attention_mask``, ...). ``labels`` are not
                given to the model: it would compute a loss of its own.

        Raises:
            TypeError: the model has no head, or one that is more than a linear map.
            ValueError: the model does more to its logits than softcap and scale (not looked at
                within a compiled function), or calls its head more than once
                (torch.nn.DataParallel does).
        """
        return cls(**run_to_head(model, inputs, valid_vocab)._asdict())

    def loss(self, teacher: Teacher | Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        """:func:`linear_distillation_loss` of this student.

        Args:
            teacher, labels, options: as there; the options of the student's head are set here.
        """
        return linear_distillation_loss(
            self.hidden, self.weight, teacher, labels, student_bias=self.bias,
            student_softcap=self.softcap, student_scale=self.scale,
            student_valid_vocab=self.valid_vocab, **options,
        )  # fmt: skip
