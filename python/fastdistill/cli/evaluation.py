"""How close the student is to the teacher on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear, nll_loss

from .corpus import NO_LABEL, next_tokens
from .models import autocast, hidden_states

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BLOCKS_PER_FORWARD = 4
ROWS_PER_CHUNK = 64


@dataclass(frozen=True)
class Quality:
    """Averages over the held-out tokens, at temperature 1."""

    kl: float
    """KL(teacher || student), nats per token."""
    top1_agreement: float
    """Share of tokens for which both rank the same token first."""
    acceptance_rate: float
    """1 - total variation: that of speculative decoding with the student as the draft."""
    perplexity: float
    """Of the student, for the token that follows."""
    teacher_perplexity: float
    """Of the teacher, for the token that follows."""


@torch.no_grad()
def evaluate(
    teacher: LlamaForCausalLM, student: LlamaForCausalLM, blocks: Tensor, dtype: torch.dtype
) -> Quality:
    """Compare the models on ``blocks`` (blocks, block length), a few rows of logits at a time."""
    student.train(False)
    sums = torch.zeros(5, dtype=torch.float64)
    for ids in torch.split(blocks, BLOCKS_PER_FORWARD):
        with autocast(dtype):
            sums += _block_sums(teacher, student, ids, next_tokens(ids))
    student.train(True)
    kl, agreement, acceptance = (sums[:3] / blocks.numel()).tolist()
    perplexity, teacher_perplexity = (sums[3:] / blocks[:, 1:].numel()).exp().tolist()
    return Quality(kl, agreement, acceptance, perplexity, teacher_perplexity)


def _block_sums(
    teacher: LlamaForCausalLM, student: LlamaForCausalLM, ids: Tensor, next_ids: Tensor
) -> Tensor:
    """The five sums of :func:`_row_sums` over one group of blocks."""
    hidden = [hidden_states(model, ids).flatten(0, 1) for model in (teacher, student)]
    sums = torch.zeros(5, dtype=torch.float64)
    for start in range(0, ids.numel(), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        log_p = linear(hidden[0][rows], teacher.lm_head.weight).float().log_softmax(-1)
        log_q = linear(hidden[1][rows], student.lm_head.weight).float().log_softmax(-1)
        sums += _row_sums(log_p, log_q, next_ids.flatten()[rows])
    return sums


def _row_sums(log_p: Tensor, log_q: Tensor, next_ids: Tensor) -> Tensor:
    """Sums over rows of KL, agreement, overlap, and both negative log-likelihoods, float64 (5,)."""
    p, q = log_p.exp(), log_q.exp()
    return torch.stack(
        [
            (p * (log_p - log_q)).sum().double(),
            (log_p.argmax(-1) == log_q.argmax(-1)).sum().double(),
            torch.minimum(p, q).sum().double(),
            nll_loss(log_q, next_ids, ignore_index=NO_LABEL, reduction="sum").double(),
            nll_loss(log_p, next_ids, ignore_index=NO_LABEL, reduction="sum").double(),
        ]
    )
