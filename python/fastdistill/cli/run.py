"""A run from teacher to saved student: the steps of ``distill`` in their order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from . import checkpoint
from .config import RunConfig, check_same_run, parse_layers
from .corpus import SourceText, tokenize
from .errors import UserError
from .evaluation import Quality, evaluate
from .models import load_teacher, prune_depth, save_student
from .report import RunReport, peak_memory_bytes, progress_bar
from .task import Task
from .training import Training, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """A configuration, and what does not change its result: where it is kept and how often."""

    config: RunConfig
    text: SourceText
    teacher: Path | None
    output: Path
    resume: bool
    checkpoint_every: int


def run(job: Job, console: Console) -> RunReport:
    """Do the job; its checkpoint goes once student and report are in ``job.output``."""
    saved = _open(job)
    task, tokenizer = _load(job, console)
    config = job.config
    training = Training(task.student, task.loss, lr=config.lr, seed=config.seed)
    if saved is None:
        before = _evaluate(task, console)
    else:
        before = Quality(**saved["before"])
        training.load_state_dict(saved["training"])
        del saved
    _train(job, training, before, console)
    peak = peak_memory_bytes()
    report = RunReport(
        config=config,
        before=before,
        after=_evaluate(task, console),
        tokens_per_second=config.steps * config.batch * config.block / training.seconds,
        peak_memory_bytes=peak,
        losses=training.losses,
    )
    save_student(task.student, tokenizer, job.output)
    report.write(job.output)
    checkpoint.remove(job.output)
    return report


def _open(job: Job) -> dict[str, Any] | None:
    saved = checkpoint.open_run(job.output, job.resume)
    if saved is not None:
        check_same_run(job.config, saved["config"])
    return saved


def _load(job: Job, console: Console) -> tuple[Task, PreTrainedTokenizerBase]:
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
    return Task(config, teacher, student, corpus), tokenizer


def _evaluate(task: Task, console: Console) -> Quality:
    with console.status("evaluating on held-out text"):
        return evaluate(task.teacher, task.student, task.corpus.held_out, task.config.torch_dtype)


def _train(job: Job, training: Training, before: Quality, console: Console) -> None:
    head = {"config": asdict(job.config), "before": asdict(before)}

    def save() -> None:
        checkpoint.save(job.output, {**head, "training": training.state_dict()})

    with progress_bar(console, len(training.losses), job.config.steps) as on_step:
        train(training, job.config.steps, save, job.checkpoint_every, on_step)
    save()
