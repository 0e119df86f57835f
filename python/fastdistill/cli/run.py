"""A run from teacher to saved student: the steps of ``distill`` in their order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from . import checkpoint
from .config import RunConfig, check_same_run, parse_layers
from .corpus import Text, tokenize
from .errors import UserError
from .evaluation import Quality, evaluate
from .models import load_teacher, prune_depth, save_student
from .report import RunReport, peak_memory_bytes, progress_bar
from .training import Trainer, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """A configuration, and what does not change its result: where it is kept and how often."""

    config: RunConfig
    text: Text
    teacher: Path | None
    output: Path
    resume: bool
    checkpoint_every: int


def run(job: Job, console: Console) -> RunReport:
    """Do the job; its checkpoint goes once student and report are in ``job.output``."""
    saved = _open(job)
    trainer, tokenizer = _load(job, console)
    if saved is None:
        before = _evaluate(trainer, console)
    else:
        before = Quality(**saved["before"])
        trainer.load_state_dict(saved["trainer"])
        del saved
    _train(job, trainer, before, console)
    peak = peak_memory_bytes()
    report = RunReport(
        config=job.config,
        before=before,
        after=_evaluate(trainer, console),
        tokens_per_second=trainer.tokens_per_second,
        peak_memory_bytes=peak,
        losses=trainer.losses,
    )
    save_student(trainer.student, tokenizer, job.output)
    report.write(job.output)
    checkpoint.remove(job.output)
    return report


def _open(job: Job) -> dict[str, Any] | None:
    saved = checkpoint.open_run(job.output, job.resume)
    if saved is not None:
        check_same_run(job.config, saved["config"])
    return saved


def _load(job: Job, console: Console) -> tuple[Trainer, PreTrainedTokenizerBase]:
    config = job.config
    with console.status("loading the teacher"):
        teacher, tokenizer = load_teacher(job.teacher, config.torch_dtype)
        student = prune_depth(teacher, parse_layers(config.layers))
        corpus = tokenize(job.text, tokenizer, config.block)
    if config.block > (limit := teacher.config.max_position_embeddings):
        raise UserError(f"--block: the teacher takes at most {limit} tokens, got {config.block}")
    console.print(
        f"teacher: {teacher.num_parameters() / 1e6:.1f} M parameters; "
        f"student: {student.num_parameters() / 1e6:.1f} M; "
        f"text: {corpus.train.numel()} tokens and {corpus.held_out.numel()} held out",
        soft_wrap=True,
    )
    return Trainer(config, teacher, student, corpus), tokenizer


def _evaluate(trainer: Trainer, console: Console) -> Quality:
    with console.status("evaluating on held-out text"):
        return evaluate(
            trainer.teacher, trainer.student, trainer.corpus.held_out, trainer.config.torch_dtype
        )


def _train(job: Job, trainer: Trainer, before: Quality, console: Console) -> None:
    head = {"config": asdict(job.config), "before": asdict(before)}

    def save() -> None:
        checkpoint.save(job.output, {**head, "trainer": trainer.state_dict()})

    with progress_bar(console, len(trainer.losses), job.config.steps) as on_step:
        train(trainer, save, job.checkpoint_every, on_step)
