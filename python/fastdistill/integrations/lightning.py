"""Distillation with Lightning (the package ``lightning``, >= 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from ._causal import CausalLoss, MetricSums, metric_values


def check_strategy(strategy: Strategy) -> None:
    """Raise where a step cannot be averaged over its tokens, or a process has no whole head."""
    if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy)):
        raise ValueError(
            "the strategy must leave each process whole gradients and heads, such as ddp, "
            f"got {type(strategy).__name__}"
        )


class DistillationModule(LightningModule):
    """A LightningModule that trains a student on a teacher, without logits on either side.

    A batch is a mapping with the models' inputs and ``labels``: token ids, not shifted, -100 where
    the token does not count. Every optimizer step is averaged over all its tokens, however they are
    cut into batches by ``accumulate_grad_batches`` or over processes. Logged are ``train_loss`` and
    the fields of :class:`Metrics` of a batch, and under ``val_`` their averages over all tokens of
    the validation.

    Args:
        student: a causal language model of transformers, also within peft. It is put into training
            mode.
        teacher: another one. It is put into evaluation mode and on the student's device. It is no
            submodule: neither trained, nor wrapped by a strategy, nor saved.
        loss_options: keywords of :func:`linear_distillation_loss`: divergence, temperature,
            soft_weight, hard_weight, scale_by_temperature_squared, student_valid_vocab (which holds
            for the teacher too), chunk_size, logits_dtype.
        optimizer: makes the optimizer of the parameters that it is given.

    Raises:
        TypeError, ValueError: ``loss_options`` that the loss does not take; when a run begins, a
            strategy under which no process has whole heads and gradients (FSDP, DeepSpeed).
    """

    student: nn.Module
    teacher: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        loss_options: Mapping[str, Any] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.AdamW,
    ) -> None:
        super().__init__()
        self.student = student.train()
        object.__setattr__(self, "teacher", teacher.eval())  # no submodule
        self._loss = CausalLoss(loss_options)
        self._optimizer = optimizer
        self._tokens: Tensor | int = 0
        self._sums = MetricSums()

    def setup(self, stage: str) -> None:
        """Put the teacher where Lightning puts the student, unless a device map has placed it."""
        check_strategy(self.trainer.strategy)
        if getattr(self.teacher, "hf_device_map", None) is None:
            self.teacher.to(self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Forget the tokens of a run that was interrupted between two steps."""
        self._tokens = 0

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of the student's trainable parameters."""
        return self._optimizer(p for p in self.student.parameters() if p.requires_grad)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The sum of the losses of the tokens; see :meth:`on_before_optimizer_step`."""
        loss, metrics = self._loss(self.student, self.teacher, batch)
        self._tokens = self._tokens + metrics.counted
        self.log("train_loss", loss.detach(), prog_bar=True)
        values = metric_values(metrics)
        self.log_dict({f"train_{name}": value.float() for name, value in values.items()})
        return loss * metrics.counted

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradients those of the mean over the tokens of the step.

        Lightning has averaged them over batches and processes, which have different numbers.
        """
        tokens = self._over_processes(torch.as_tensor(self._tokens, device=self.device))
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(shares / tokens.clamp(min=1))
        self._tokens = 0

    def on_validation_epoch_start(self) -> None:
        """Forget the averages of a validation that was interrupted."""
        self._sums = MetricSums()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Add a batch to the averages."""
        loss, metrics = self._loss(self.student, self.teacher, batch)
        self._sums.add({"loss": loss, **metric_values(metrics)})

    def on_validation_epoch_end(self) -> None:
        """Log the averages over all tokens."""
        averages = self._sums.take(self._over_processes)
        named = {f"val_{name}": value for name, value in averages.items()}
        self.log_dict(named, sync_dist=True)  # the same everywhere; unsaid, Lightning would warn

    def _over_processes(self, sums: Tensor) -> Tensor:
        total: Tensor = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return total
