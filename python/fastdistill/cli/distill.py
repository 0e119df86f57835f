"""``python -m fastdistill distill``: the options, and what they say when they are wrong."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .checkpoint import CHECKPOINT
from .config import (
    DtypeChoice,
    LossChoice,
    RunConfig,
    check_divergence,
    parse_layers,
    resolve_dtype,
)
from .corpus import read_text
from .errors import UserError, wrong_use
from .models import check_packages
from .recipes import RecipeChoice, run_recipe
from .run import Job, run

RECIPE_OPTIONS = {"recipe", "quick", "teacher", "output", "resume", "dtype", "as_json"}


def _positive(value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value} is not a finite number greater than 0.")
    return value


def distill(
    context: typer.Context,
    *,
    files: Annotated[list[Path] | None, typer.Argument(help="More text, as after --text.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="UTF-8 text. [default: Python's documentation]"),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="New directory for the student.")
    ] = Path("distilled-student"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 90,
    batch: Annotated[int, typer.Option(min=1, help="Blocks of text per step.")] = 4,
    block: Annotated[
        int, typer.Option("--block", "--seq-len", min=2, help="Tokens per block.")
    ] = 128,
    lr: Annotated[float, typer.Option(callback=_positive, help="Learning rate of AdamW.")] = 2e-4,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of the text.")] = 0,
    divergence: Annotated[
        str, typer.Option(metavar="NAME", help="forward_kl, reverse_kl, ...")
    ] = "forward_kl",
    temperature: Annotated[
        float, typer.Option(callback=_positive, help="Divides the logits of both models.")
    ] = 1.0,
    loss: Annotated[
        LossChoice, typer.Option(help="fused, or the same in plain torch to compare with.")
    ] = "fused",
    dtype: Annotated[
        DtypeChoice, typer.Option(help="Of the matrix products; auto asks the CPU.")
    ] = "auto",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Llama model in Hugging Face format. [default: SmolLM2-135M-Instruct]",
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="LIST", help="Teacher layers that the student keeps.")
    ] = "0-9,20-29",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the final report as JSON; all else goes to standard error."
        ),
    ] = False,
    recipe: Annotated[
        RecipeChoice | None,
        typer.Option(help="Instead: a study that compares ways to distil."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --recipe: in two minutes, for a look.")
    ] = False,
) -> None:
    """Distil a teacher into a student made of some of its layers.

    The student is saved in Hugging Face format, with a report of its quality on held-out text.
    Ctrl-C saves a checkpoint that --resume continues from.
    """
    console = Console(stderr=as_json)
    if recipe is None and quick:
        raise wrong_use("--quick goes with --recipe")
    if recipe is not None:
        _refuse_options_of_the_main_job(context, recipe)
        output = output if _is_given(context, "output") else Path(f"recipe-{recipe}")
        _study(recipe, teacher, output, resume, dtype, quick, console, as_json)
        return
    try:
        source = read_text([*(text or []), *(files or [])])
        resolved, reason = resolve_dtype(dtype)
        config = RunConfig(
            teacher=str(teacher or "SmolLM2-135M-Instruct"),
            layers=layers,
            text=source.name,
            divergence=divergence,
            temperature=temperature,
            loss=loss,
            dtype=resolved,
            steps=steps,
            batch=batch,
            block=block,
            lr=lr,
            seed=seed,
        )
        check_divergence(divergence)
        parse_layers(layers)
        check_packages(teacher)
        console.print(f"dtype: {resolved}, {reason}", soft_wrap=True)
        report = run(Job(config, source, teacher, output, resume, checkpoint_every), console)
    except UserError as error:
        raise wrong_use(error) from None
    except KeyboardInterrupt:
        typer.echo(_how_to_resume(output), err=True)
        raise typer.Exit(130) from None
    report.print(console)
    typer.echo(f"student saved in {output}", err=as_json)
    if as_json:
        typer.echo(report.to_json())


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_options_of_the_main_job(context: typer.Context, recipe: str) -> None:
    for parameter in context.command.params:
        if parameter.name not in RECIPE_OPTIONS and _is_given(context, str(parameter.name)):
            raise wrong_use(
                f"{parameter.opts[0]} does not go with --recipe {recipe}, whose settings are fixed"
            )


def _study(
    recipe: RecipeChoice,
    teacher: Path | None,
    output: Path,
    resume: bool,
    dtype: DtypeChoice,
    quick: bool,
    console: Console,
    as_json: bool,
) -> None:
    try:
        resolved, reason = resolve_dtype(dtype)
        console.print(f"dtype: {resolved}, {reason}", soft_wrap=True)
        report = run_recipe(
            recipe, output, console, dtype=resolved, teacher=teacher, quick=quick, resume=resume
        )
    except UserError as error:
        raise wrong_use(error) from None
    except KeyboardInterrupt:
        typer.echo(_how_to_resume(output), err=True)
        raise typer.Exit(130) from None
    typer.echo(f"results saved in {output}", err=as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=1))


def _how_to_resume(output: Path) -> str:
    """What to say after Ctrl-C; the checkpoint is that of the last step taken."""
    if not (output / CHECKPOINT).exists():
        return "interrupted before the first step: nothing to resume"
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    command = shlex.join(["python", "-m", "fastdistill", *arguments, "--resume"])
    return f"interrupted; the checkpoint is in {output}; continue with:\n  {command}"
