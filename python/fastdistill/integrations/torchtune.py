"""A loss with the calling convention of torchtune's distillation recipes; torchtune not needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import Divergence
from ..losses import DistillationLoss as LogitsLoss


class DistillationLoss(nn.Module):
    """Stands in for the ``kd_loss`` of a recipe: ``(student_logits, teacher_logits, labels)``.

    .. code-block:: yaml

        kd_loss:
          _component_: fastdistill.integrations.torchtune.DistillationLoss
          divergence: reverse_kl

    The value is the mean over the tokens whose label is not ``ignore_index``, as of torchtune's own
    losses, and so are the gradients; ``sym_kd_ratio`` is the weight of ``SymmetricKL``. Where
    torchtune says forward KL it takes the cross entropy -sum p log q: the same gradient, a value
    that is larger by the teacher's entropy. Here it is KL(p || q), zero where the two agree.

    Args:
        divergence: an instance, or a name such as ``"forward_kl"``.
        ignore_index: tokens whose label equals it do not count.
        num_output_chunks: into how many chunks the recipe makes the models cut their logits. It is
            read by the recipe alone; the memory of this loss does not depend on it.
        options: temperature and others of :class:`fastdistill.DistillationLoss`, but reduction.
    """

    def __init__(
        self,
        divergence: Divergence | str = "forward_kl",
        ignore_index: int = -100,
        num_output_chunks: int = 8,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_output_chunks = num_output_chunks
        self.ignore_index = ignore_index
        self.loss = LogitsLoss(
            divergence=divergence, ignore_index=ignore_index, reduction="mean", **options
        )

    def forward(
        self,
        student_logits: Tensor | Sequence[Tensor],
        teacher_logits: Tensor | Sequence[Tensor],
        labels: Tensor,
    ) -> Tensor:
        """The loss.

        Args:
            student_logits: ``(..., V)``, or chunks ``(B, S_i, V)`` of the sequence.
            teacher_logits: as ``student_logits``.
            labels: ``(...)``, or ``(B, S)`` with S the sum of S_i; aligned with the logits.

        Raises:
            TypeError, ValueError: other types or shapes.
        """
        counted = (labels != self.ignore_index).sum()
        loss = labels.new_zeros((), dtype=torch.float32)
        for chunk in zip(*_in_chunks(student_logits, teacher_logits, labels), strict=True):
            loss = loss + self.loss(*chunk, num_items=counted)
        return loss


def _in_chunks(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], labels: Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return [student], [teacher], [labels]
    if isinstance(student, Tensor) or isinstance(teacher, Tensor):
        raise TypeError(
            "student_logits and teacher_logits must both be tensors, or both lists of chunks, "
            f"got {type(student).__name__} and {type(teacher).__name__}"
        )
    if len(student) != len(teacher):
        raise ValueError(
            "student_logits and teacher_logits must have the same number of chunks, "
            f"got {len(student)} and {len(teacher)}"
        )
    sizes = [chunk.shape[1] for chunk in student]
    if sum(sizes) != labels.shape[1]:
        raise ValueError(
            "labels (B, S) must be as long as all chunks of student_logits, "
            f"got S = {labels.shape[1]} and {sum(sizes)}"
        )
    return student, teacher, labels.split(sizes, dim=1)
