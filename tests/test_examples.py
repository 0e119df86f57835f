"""Every example runs, and nothing of a framework is imported before its integration is."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("_"))
STUDIES = [path for path in SCRIPTS if "run_recipe" in path.read_text()]
INTEGRATED = ("accelerate", "lightning", "peft", "torchtune", "transformers", "trl")


def imported(path):
    """The packages that a script imports, and those of the module that the examples share."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


def missing(path):
    packages = {*imported(path), *imported(EXAMPLES / "_tiny.py")} - {"_tiny"}
    return sorted(name for name in packages if importlib.util.find_spec(name) is None)


def test_there_are_examples():
    assert {"trainer.py", "lightning_module.py", "accelerate_loop.py"} <= {p.name for p in SCRIPTS}


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path not in STUDIES], ids=lambda path: path.stem
)
def test_example_runs(script, tmp_path):
    if absent := missing(script):
        pytest.skip(f"needs {', '.join(absent)}")
    run = subprocess.run(
        [sys.executable, script, "--steps", "3"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", STUDIES, ids=lambda path: path.stem)
def test_study_has_its_options(script):
    """The studies themselves run in the tests of their recipes."""
    if absent := missing(script):
        pytest.skip(f"needs {', '.join(absent)}")
    run = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--quick", "--teacher", "--output"):
        assert option in run.stdout


def test_importing_the_package_imports_no_framework():
    code = f"""
import sys
import fastdistill, fastdistill.integrations, fastdistill.integrations.torchtune
print([name for name in {INTEGRATED} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
