"""Text that students are trained and judged on: of a corpus, or sampled by a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastdistill as fd

from ..models import autocast, hidden_states, unstrided_head_inputs

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BLOCKS_PER_FORWARD = 16
BLOCKS_PER_SAMPLING = 128


@dataclass(frozen=True)
class Text:
    """Blocks of token ids, int64 (blocks, length), and which of them count, bool (blocks, length).

    What does not count is the prompt of a sampled text, and what comes after its end.
    """

    ids: Tensor
    counted: Tensor

    @classmethod
    def whole(cls, ids: Tensor) -> Text:
        """Text of which every token counts."""
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    def __getitem__(self, blocks: Tensor | slice) -> Text:
        return Text(self.ids[blocks], self.counted[blocks])


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, prompts: Tensor, length: int, seed: int, *, ends: bool = True
) -> Text:
    """Continue ``prompts`` (blocks, prompt length) at T = 1 to blocks of ``length`` tokens.

    A position counts where the token that follows was sampled: there the model was asked. Unless
    text ``ends``, the end token is not sampled, and as many positions count in each block.
    """
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    end = int(model.config.eos_token_id)  # type: ignore[arg-type]
    new_tokens = length - prompts.shape[1]
    with unstrided_head_inputs(model):
        blocks = [
            model.generate(
                input_ids=some,
                attention_mask=torch.ones_like(some),
                max_new_tokens=new_tokens,
                min_new_tokens=0 if ends else new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=end,
            )
            for some in prompts.split(BLOCKS_PER_SAMPLING)
        ]
    model.train(was_training)
    ids = torch.full((len(prompts), length), end)
    row = 0
    for block in blocks:
        ids[row : row + len(block), : block.shape[1]] = block
        row += len(block)
    first = prompts.shape[1] - 1  # predicts the first sampled token
    ended = (ids[:, first:] == end).int().cumsum(1) > 0
    counted = torch.zeros_like(ids, dtype=torch.bool)
    counted[:, first:] = ~ended
    counted[:, -1] = False
    return Text(ids, counted)


@dataclass(frozen=True)
class ScoredText:
    """Text, and what its teacher says of it: the last hidden states (blocks, length, D)."""

    text: Text
    hidden: Tensor
    head: Tensor
    """The teacher's head, (V, D)."""

    def __getitem__(self, blocks: Tensor | slice) -> ScoredText:
        return ScoredText(self.text[blocks], self.hidden[blocks], self.head)

    def loss(self, student: LlamaForCausalLM, dtype: torch.dtype, **options: Any) -> Any:
        """The distillation loss of ``student`` on this text, its GEMMs in ``dtype``.

        ``options`` are those of :func:`fastdistill.linear_distillation_loss`.
        """
        hidden = self.student_hidden(student, dtype)
        return self.loss_of_hidden(hidden, student.lm_head.weight, dtype, **options)

    def student_hidden(self, student: LlamaForCausalLM, dtype: torch.dtype) -> Tensor:
        """The last hidden states (blocks, length, D) of ``student`` on this text."""
        with autocast(dtype):
            return hidden_states(student, self.text.ids)

    def loss_of_hidden(
        self, hidden: Tensor, head: Tensor, dtype: torch.dtype, **options: Any
    ) -> Any:
        """The same of a student's last hidden states, (blocks, length, D), and head, (V, D)."""
        with autocast(dtype):
            return fd.linear_distillation_loss(
                hidden,
                head,
                fd.TeacherHead(self.hidden, self.head),
                mask=self.text.counted,
                **options,
            )


@torch.no_grad()
def score(teacher: LlamaForCausalLM, text: Text) -> ScoredText:
    """What ``teacher`` says of ``text``."""
    hidden = [hidden_states(teacher, ids) for ids in text.ids.split(BLOCKS_PER_FORWARD)]
    return ScoredText(text, torch.cat(hidden), teacher.lm_head.weight)


@dataclass(frozen=True)
class Closeness:
    """How close a student is to its teacher: averages over the counted tokens, at T = 1."""

    forward_kl: float
    """KL(teacher || student), nats per token."""
    reverse_kl: float
    """KL(student || teacher), nats per token."""
    acceptance_rate: float
    """1 - total variation: the chance that a sampled draft token is accepted."""
    top1_agreement: float
    """Share of tokens for which both rank the same token first."""


@torch.no_grad()
def closeness(student: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> Closeness:
    """Compare ``student`` with the teacher of ``scored``."""
    was_training = student.training
    student.eval()  # type: ignore[no-untyped-call]
    sums = dict.fromkeys(Closeness.__dataclass_fields__, 0.0)
    counted = int(scored.text.counted.sum())
    for start in range(0, len(scored.text.ids), BLOCKS_PER_FORWARD):
        part = scored[start : start + BLOCKS_PER_FORWARD]
        _, metrics = part.loss(student, dtype, return_metrics=True, num_items=counted)
        for name in sums:
            sums[name] += getattr(metrics, name).item()
    student.train(was_training)
    return Closeness(**sums)
