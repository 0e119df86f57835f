"""One optimizer step, and the loop that can be stopped and resumed without a trace."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fastdistill as fd
from fastdistill import reference

from .config import RunConfig
from .corpus import Corpus
from .errors import UserError
from .models import hidden_states

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class Trainer:
    """Student, optimizer and position of a run: all that a checkpoint holds."""

    def __init__(
        self,
        config: RunConfig,
        teacher: LlamaForCausalLM,
        student: LlamaForCausalLM,
        corpus: Corpus,
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.student = student
        self.corpus = corpus
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, fused=True)
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return len(self.losses) >= self.config.steps

    @property
    def tokens_per_second(self) -> float:
        """Over all steps: teacher and student forward, backward and optimizer."""
        tokens = len(self.losses) * self.config.batch * self.config.block
        return tokens / self.seconds

    def step(self) -> float:
        """Take one step and return its loss, nats per token."""
        started = time.perf_counter()
        step = len(self.losses)
        ids = self.corpus.batch(self.config.seed, step, self.config.batch)
        # Dropout, too, must not depend on the steps that this process has taken.
        torch.manual_seed(self.config.seed + step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(ids)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {step + 1}: try a smaller --lr")
        loss.backward()
        self.optimizer.step()
        self.losses.append(value)
        self.seconds += time.perf_counter() - started
        return value

    def _loss(self, ids: Tensor) -> Tensor:
        """The loss of the token ids (batch, block). The fused one holds no (N, V) tensor."""
        config = self.config
        implementation: Any = reference if config.loss == "torch" else fd
        with torch.no_grad():
            teacher_hidden = hidden_states(self.teacher, ids)
        bf16 = config.torch_dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss: Tensor = implementation.linear_distillation_loss(
                hidden_states(self.student, ids),
                self.student.lm_head.weight,
                fd.TeacherHead(teacher_hidden, self.teacher.lm_head.weight),
                divergence=config.divergence,
                temperature=config.temperature,
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything that the remaining steps depend on."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        self.seconds = state["seconds"]


def train(
    trainer: Trainer,
    save: Callable[[], None],
    checkpoint_every: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Take the remaining steps, saving every ``checkpoint_every`` steps and at the end.

    Ctrl-C ends the step in hand, saves, and raises KeyboardInterrupt.
    """
    with _interrupt_between_steps() as interrupted:
        while not trainer.done:
            loss = trainer.step()
            step = len(trainer.losses)
            on_step(step, loss)
            stop = interrupted()
            if stop or trainer.done or step % checkpoint_every == 0:
                save()
            if stop:
                raise KeyboardInterrupt


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag: half an optimizer step must not be saved.

    A second Ctrl-C acts at once.
    """
    requested = False

    def request(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
