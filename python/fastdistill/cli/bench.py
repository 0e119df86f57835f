"""``python -m fastdistill bench``: the benchmark suite, which is in a checkout alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from .errors import wrong_use

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_OF_A_CHECKOUT = ("bench/__main__.py", "python/fastdistill/__main__.py")


def bench(context: typer.Context) -> None:
    """Run the benchmark suite of a checkout.

    The options are those of python -m bench.
    """
    if not all(Path(name).is_file() for name in _OF_A_CHECKOUT):
        raise wrong_use(
            "the benchmark suite comes with the repository and the source distribution only: "
            "run this in the top directory of one of them"
        )
    os.execv(sys.executable, [sys.executable, "-m", "bench", *context.args])
