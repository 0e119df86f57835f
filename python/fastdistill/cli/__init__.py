"""The command line: ``info`` and ``distill``.

``distill`` reads from top to bottom as ``distill.py``; each of its steps is one module:
``corpus`` (text to token blocks), ``models`` (teacher and pruned student), ``evaluation``,
``training``, ``checkpoint`` and ``report``. Nothing here is imported by ``import fastdistill``,
and transformers is imported only once every option has been checked.
"""

from __future__ import annotations

import typer

import fastdistill as fd

from .distill import distill

app = typer.Typer(
    help="Distillation losses for language models.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(distill)


@app.command()
def info() -> None:
    """Print version, compiler, instruction sets, CUDA and threads."""
    fd.show_config()
