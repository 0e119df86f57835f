"""The installed package: version, types, files, and the one OpenMP runtime."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fastdistill as fd
from fastdistill import _C

ROOT = Path(__file__).parent.parent
SOURCES = {".py", ".pyi", ".typed"}
PACKAGE = importlib.resources.files("fastdistill")
TORCH_OPENMP = set((Path(torch.__file__).parent / "lib").glob("libgomp*.so.1"))


def installed_files() -> list[str]:
    files = importlib.metadata.files("fastdistill")
    assert files is not None
    return [str(path) for path in files if "__pycache__" not in path.parts]


def is_editable() -> bool:
    origin = importlib.metadata.distribution("fastdistill").read_text("direct_url.json")
    return origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)


def test_one_version_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert fd.__version__ == importlib.metadata.version("fastdistill") == declared[1]


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_C.pyi").is_file()


def public_names(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_stub_names_what_the_module_has() -> None:
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    declared: dict[str, list[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
            methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
            declared[node.name] = fields + methods
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = []
        elif isinstance(node, ast.AnnAssign):
            declared[node.target.id] = []
    assert set(declared) == public_names(dir(_C))
    for name, members in declared.items():
        actual = getattr(_C, name)
        if hasattr(actual, "__members__"):  # an enumeration
            assert public_names(members) == set(actual.__members__), name
        elif isinstance(actual, type):
            assert public_names(members) == public_names(dir(actual)), name


@pytest.mark.skipif(is_editable(), reason="an editable install lists no package files")
def test_wheel_holds_the_package_and_nothing_else() -> None:
    source = ROOT / "python"
    paths = (source / "fastdistill").rglob("*")
    modules = {str(path.relative_to(source)) for path in paths if path.suffix in SOURCES}
    files = installed_files()
    package = {name for name in files if not name.startswith(("fastdistill-", "../"))}
    (compiled,) = package - modules
    assert re.fullmatch(r"fastdistill/_C\..+\.so", compiled)
    assert modules < package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


@pytest.mark.skipif(is_editable(), reason="the metadata of an editable install may be older")
def test_console_script_is_the_command_line() -> None:
    scripts = importlib.metadata.distribution("fastdistill").entry_points
    assert [(script.name, script.value) for script in scripts] == [
        ("fastdistill", "fastdistill.__main__:main")
    ]


@pytest.mark.skipif(not _C.COMPILER.startswith("GNU"), reason="another compiler's OpenMP runtime")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_module_finds_its_libraries_by_name_alone() -> None:
    command = ["readelf", "--dynamic", "--wide", str(_C.__file__)]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libgomp.so.1" in needed
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    system = r"lib(gomp|stdc\+\+|gcc_s|m|c|pthread|dl|rt)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+"
    assert {name for name in needed if not re.fullmatch(system, name)} == set()


@pytest.mark.skipif(not _C.COMPILER.startswith("GNU"), reason="another compiler's OpenMP runtime")
@pytest.mark.skipif(not TORCH_OPENMP, reason="this torch ships no libgomp")
def test_kernels_and_torch_share_one_openmp_runtime() -> None:
    logits = torch.randn(64, 4096)
    fd.distillation_loss(logits, logits)
    maps = Path("/proc/self/maps").read_text()
    mapped = {Path(path) for path in re.findall(r"(/\S*lib[gi]?omp[^/\s]*)$", maps, re.MULTILINE)}
    assert mapped == TORCH_OPENMP


def test_contributing_shows_the_code_as_it_is() -> None:
    diff = (ROOT / "CONTRIBUTING.md").read_text().split("```diff\n")[1].split("```")[0]
    shown: dict[str, list[str]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            shown[line.removeprefix("+++ b/")] = []
        elif line.startswith("+"):
            list(shown.values())[-1].append(line[1:].strip())
    assert len(shown) == 2
    for name, lines in shown.items():
        code = [line.strip() for line in (ROOT / name).read_text().splitlines()]
        assert [line for line in lines if line not in code] == []
