"""The command line: ``info``, ``bench`` and ``distill``.

``distill`` reads from top to bottom as ``distill.py``; each of its steps is one module:
``corpus`` (text to token blocks), ``models`` (teacher and pruned student), ``task`` (the loss),
``evaluation``, ``training``, ``checkpoint`` and ``report``. ``recipes`` are studies made of the
same steps. Nothing here is imported by ``import fastdistill``, and transformers is imported only
once every option has been checked.

A command ends with 0, with 2 where it was used wrongly, with 130 where Ctrl-C ended it, and with 1
after a traceback.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

import fastdistill as fd
from fastdistill._show_config import config as build_config

from .bench import PASSED_ON, bench
from .distill import distill

app = typer.Typer(
    help="Distillation losses for language models.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def info(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Print version, compiler, instruction sets, CUDA and threads."""
    if as_json:
        typer.echo(json.dumps(build_config(), indent=1))
    else:
        fd.show_config()


app.command(context_settings=PASSED_ON)(bench)
app.command()(distill)
