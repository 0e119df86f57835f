"""Environment variables of the package, for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def forced(**values: int) -> Iterator[None]:
    """What the package would choose on its own, by the name of the variable."""
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
