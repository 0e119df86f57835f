"""Distillation with the Trainer of Hugging Face transformers (>= 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ._causal import CausalLoss, MetricSums, check_heads_are_whole, metric_values


class DistillationTrainer(Trainer):
    """A Trainer whose loss is the distillation from a teacher, without logits on either side.

    The examples hold ``labels`` as for training without a teacher: token ids, not shifted, -100
    where the token does not count. Every step is averaged over all its tokens, however they are cut
    into batches for gradient accumulation or over processes. The fields of :class:`Metrics` are
    logged beside the loss, averaged over the tokens since the last log, and by evaluation under
    ``eval_``.

    Logits are made only for who asks for them: ``predict``, and ``evaluate`` with
    ``compute_metrics``.

    Args:
        teacher: a causal language model of transformers. It is put on the Trainer's device, unless
            a device map has placed it, and into evaluation mode; it is neither trained nor saved.
        loss_options: keywords of :func:`linear_distillation_loss`: divergence, temperature,
            soft_weight, hard_weight, scale_by_temperature_squared, student_valid_vocab (which holds
            for the teacher too), chunk_size, logits_dtype.
        trainer_arguments: those of ``transformers.Trainer``; the student is its ``model``, also
            within peft.

    Raises:
        TypeError, ValueError: ``loss_options`` that the loss does not take, another loss
            (``compute_loss_func``, label smoothing), or a setting in which no process has a whole
            head (FSDP, DeepSpeed ZeRO-3) or one process drives several models (DataParallel).
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        teacher: nn.Module,
        loss_options: Mapping[str, Any] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        self._loss = CausalLoss(loss_options)
        super().__init__(**trainer_arguments)
        self._check_setting()
        # It says that tokens are to be counted for compute_loss, whatever the student's forward is.
        self.model_accepts_loss_kwargs = True
        # A row's first token is nobody's target here, whatever the student's own loss would do.
        self._loss_shifts_labels = True
        self.teacher = teacher.eval()
        if getattr(teacher, "hf_device_map", None) is None:
            teacher.to(self.args.device)
        self._sums = {"train": MetricSums(), "eval": MetricSums()}

    def _check_setting(self) -> None:
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError("distillation takes no compute_loss_func and no label smoothing")
        check_heads_are_whole(self)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process drives {self.args.n_gpu} GPUs (torch.nn.DataParallel): start a "
                "process for each, or set CUDA_VISIBLE_DEVICES"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch, or with ``return_outputs`` that and its metrics by name."""
        with self.accelerator.autocast():
            loss, metrics = self._loss(model, self.teacher, inputs, num_items_in_batch)
        values = metric_values(metrics)
        self._sums["train" if model.training else "eval"].add(values, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The number is that of all processes, over which gradients are averaged.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, values) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, logits and labels of a batch; the last two only if they are asked for."""
        loss, *_ = super().prediction_step(model, inputs, True, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels", None)
        with torch.no_grad(), self.accelerator.autocast():
            return loss, model(**inputs).logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Add the averages over all tokens of ``dataloader`` to the metrics."""
        self._sums["eval"] = MetricSums()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        averages = self._sums["eval"].take(self._over_processes)
        named = {f"{metric_key_prefix}_{name}": value for name, value in averages.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log to a log of the training loss."""
        if "loss" in logs:
            logs |= self._sums["train"].take(self._over_processes)
        super().log(logs, start_time)

    def _over_processes(self, sums: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(sums, "sum")
        return total
