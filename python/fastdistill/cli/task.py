"""What ``distill`` minimises: the models, the text, and the loss of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill import reference

from .config import RunConfig
from .corpus import Corpus
from .models import autocast, hidden_states

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Task:
    """A student to be made like its teacher on a corpus."""

    config: RunConfig
    teacher: LlamaForCausalLM
    student: LlamaForCausalLM
    corpus: Corpus

    def loss(self, step: int) -> Tensor:
        """The loss of one step, nats per token. The fused one holds no (N, V) tensor."""
        config = self.config
        ids = self.corpus.batch(config.seed, step, config.batch)
        implementation: Any = reference if config.loss == "torch" else fd
        with torch.no_grad():
            teacher_hidden = hidden_states(self.teacher, ids)
        with autocast(config.torch_dtype):
            loss: Tensor = implementation.linear_distillation_loss(
                hidden_states(self.student, ids),
                self.student.lm_head.weight,
                fd.TeacherHead(teacher_hidden, self.teacher.lm_head.weight),
                divergence=config.divergence,
                temperature=config.temperature,
            )
        return loss
