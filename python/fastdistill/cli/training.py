"""One optimizer step, and the loop that can be stopped and resumed without a trace."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError


class Training:
    """Student, optimizer and position of a run: all that a checkpoint holds.

    ``loss`` makes the loss of a step, a scalar in nats per token, out of the step's number alone:
    then a run that was interrupted continues as if it had not been.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: Callable[[int], Tensor],
        *,
        lr: float,
        seed: int,
    ) -> None:
        self.student = student
        self.losses: list[float] = []
        self.seconds = 0.0
        self._loss = loss
        self._seed = seed
        trainable = [p for p in student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=lr, fused=True)

    def step(self) -> float:
        """Take one step and return its loss, nats per token."""
        started = time.perf_counter()
        step = len(self.losses)
        # Dropout, too, must not depend on the steps that this process has taken.
        torch.manual_seed(self._seed + step)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(step)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {step + 1}: try a smaller --lr")
        loss.backward()
        self._optimizer.step()
        self.losses.append(value)
        self.seconds += time.perf_counter() - started
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything that the remaining steps depend on."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        self.seconds = state["seconds"]


def train(
    training: Training,
    steps: int,
    save: Callable[[], None],
    checkpoint_every: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Take steps until ``steps`` are taken, saving every ``checkpoint_every`` before the last.

    Ctrl-C ends the step in hand, saves, and raises KeyboardInterrupt.
    """
    with _interrupt_between_steps() as interrupted:
        while len(training.losses) < steps:
            loss = training.step()
            step = len(training.losses)
            on_step(step, loss)
            stop = interrupted()
            if stop or (step < steps and step % checkpoint_every == 0):
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
