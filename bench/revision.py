"""Another revision of this repository: built from a worktree of git, and removed afterwards."""

from __future__ import annotations

import contextlib
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .document import ROOT

Build = Callable[[Path, Path], None]
"""Builds the source in one folder, and installs the package into another."""


def _git(*arguments: str | Path, repository: Path) -> str:
    command = ["git", "-C", str(repository), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve(revision: str, repository: Path = ROOT) -> str:
    """The full name of a commit. Raises ValueError where there is none."""
    return _git("rev-parse", "--verify", f"{revision}^{{commit}}", repository=repository)


def build_package(source: Path, target: Path) -> None:
    """The package and its native module, as pip would install them, without dependencies."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--target", str(target), str(source)], check=True)


@contextlib.contextmanager
def built(revision: str, build: Build = build_package, repository: Path = ROOT) -> Iterator[Path]:
    """A folder that the package of a revision can be imported from, while it lasts."""
    commit = resolve(revision, repository)
    with tempfile.TemporaryDirectory(prefix="fastdistill-") as folder:
        source, target = Path(folder) / "source", Path(folder) / "site"
        _git("worktree", "add", "--detach", source, commit, repository=repository)
        try:
            build(source, target)
            yield target
        finally:
            _git("worktree", "remove", "--force", source, repository=repository)


def importing_from(target: Path | None) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a Python whose fastdistill is that of the folder.

    Without one it is the installed one. An editable install comes before every path, by a file
    that only ``site`` reads; hence ``-S``, and the folders that ``site`` would have added.
    """
    if target is None:
        return [sys.executable], dict(os.environ)
    given = os.environ.get("PYTHONPATH")
    paths = [str(target), *site.getsitepackages(), *([given] if given else [])]
    return [sys.executable, "-S"], {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
