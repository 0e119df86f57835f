"""Builds the checkout for the architecture of this GPU and installs it into a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from .process import environment
from .stages import ROOT, SITE, WORK
from .worker import Context

_DEFAULT_CUDA = Path("/usr/local/cuda/bin")
_IMPORTED = "import fastdistill as fd; print(fd.__file__); print(fd._C.CUDA); print(fd._C.COMPILER)"


def architecture() -> str:
    """The GPU's, as CMake calls it, without code for later ones."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}-real"


def pip_install(target: Path, *arguments: str) -> list[str]:
    """The command that installs into a folder, without dependencies and without a network."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    return [*pip, "--no-deps", "--upgrade", "--target", str(target), *arguments]


def build_environment(target: str) -> dict[str, str]:
    """With nvcc on the PATH where it is in its usual place, and all cores."""
    path = os.environ.get("PATH", "")
    if shutil.which("nvcc") is None and _DEFAULT_CUDA.is_dir():
        path = f"{path}{os.pathsep}{_DEFAULT_CUDA}"
    return {
        **os.environ,
        "PATH": path,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
        "SKBUILD_CMAKE_DEFINE": f"FD_CUDA=ON;CMAKE_CUDA_ARCHITECTURES={target}",
    }


def _version(tool: str) -> str | None:
    """What the tool says, or None where it cannot be run."""
    try:
        output = subprocess.check_output([tool, "--version"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\d+\.\d+[\d.]*", output)
    return found[0] if found else output.strip()


def _check_import() -> tuple[str, str]:
    """(CUDA backend, compiler) of what is imported by the stages that follow."""
    output = subprocess.check_output(
        [sys.executable, "-c", _IMPORTED], text=True, cwd=WORK, env=environment(SITE)
    )
    imported, backend, compiler = output.splitlines()
    if not Path(imported).is_relative_to(SITE):
        raise SystemExit(f"{imported} is imported instead of the build in {SITE}: uninstall it")
    if not backend:
        raise SystemExit("the build has no CUDA backend")
    return backend, compiler


def run(context: Context) -> None:
    """Build, install, and look whether it can be imported; in a dry run, look for the tools."""
    target = "native" if context.dry_run else architecture()
    command = pip_install(
        SITE, "--no-build-isolation", "-v", "-C", f"build-dir={WORK / f'cmake-{target}'}", "."
    )
    environ = build_environment(target)
    print(f"SKBUILD_CMAKE_DEFINE='{environ['SKBUILD_CMAKE_DEFINE']}'", *command, flush=True)
    tools = {tool: _version(tool) for tool in ("cmake", "nvcc", "c++")}
    context.emit("build", command=" ".join(command), architecture=target, **tools)
    if context.dry_run:
        return
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    backend, compiler = _check_import()
    context.emit("built", backend=backend, compiler=compiler)
