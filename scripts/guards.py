#!/usr/bin/env python3
"""Checks of the layers that no compiler makes. Prints each violation; exits with 1 if there is one.

``losses -> functional -> _autograd -> _ops -> _native -> _C``: a module never reaches one to its
left, directly or through others. ``csrc`` knows nothing of torch or, but for the bindings, of
Python; the kernels know no divergence by name.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "fastdistill"
CSRC = ROOT / "csrc"

STACK = ("losses", "functional", "_autograd", "_ops", "_native", "_C")
REFERENCE = "reference"  # what the kernels are tested against shares nothing with them
COMMAND_LINE = "cli"  # nothing of the library needs it

NOT_IN_CSRC = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|pybind11|Python\.h)")
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w")


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) for each import of this package's own top-level modules."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            absolute = (node.module or "").split(".")
            if node.level == 0 and absolute[0] == "fastdistill":
                names = absolute[1:2] or [alias.name for alias in node.names]
            elif node.level == depth:
                names = absolute[:1] if node.module else [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "fastdistill":
                    yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def import_graph() -> dict[str, dict[str, int]]:
    """Module -> imported module -> line, over the package's top-level modules and subpackages."""
    graph: dict[str, dict[str, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, name in imported_modules(path):
            graph.setdefault(module, {}).setdefault(name, line)
    return graph


def path_between(graph: dict[str, dict[str, int]], start: str, end: str) -> list[str] | None:
    """The modules of a shortest chain of imports."""
    chains = [[start]]
    seen = {start}
    for chain in chains:
        for name in graph.get(chain[-1], {}):
            if name == end:
                return [*chain, name]
            if name not in seen:
                seen.add(name)
                chains.append([*chain, name])
    return None


def check_imports() -> Iterator[str]:
    graph = import_graph()
    forbidden = [(low, high) for i, high in enumerate(STACK) for low in STACK[i + 1 :]]
    forbidden += [(REFERENCE, native) for native in STACK]
    library = set(graph) - {COMMAND_LINE, "__main__"}
    forbidden += [(module, module) for module in sorted(library)]
    forbidden += [(module, COMMAND_LINE) for module in sorted(library)]
    forbidden += [(module, "__init__") for module in sorted(library - {"__init__"})]
    found = [chain for start, end in forbidden if (chain := path_between(graph, start, end))]
    shown: list[str] = []
    for chain in sorted(found, key=len):
        text = " -> ".join(chain)
        if not any(shorter in text for shorter in shown):
            shown.append(text)
            yield f"python/fastdistill/{chain[0]}.py:{graph[chain[0]][chain[1]]}: {text}"


def find_in(files: Iterator[Path], pattern: re.Pattern[str], what: str) -> Iterator[str]:
    for path in files:
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if match := pattern.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {what}: {match[0]}"


def sources() -> Iterator[Path]:
    return (p for p in sorted(CSRC.rglob("*")) if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def check_csrc() -> Iterator[str]:
    pure = (path for path in sources() if path.name != "bindings.cpp")
    yield from find_in(pure, NOT_IN_CSRC, "csrc knows nothing of torch and Python")
    listed = re.search(r"#define FASTDISTILL_DIVERGENCES.*?\n\n", definition(), re.DOTALL)
    names = re.findall(r"X\((\w+)\)", listed[0]) if listed else []
    if not names:
        yield "csrc/divergence.h: the list FASTDISTILL_DIVERGENCES was not found"
        return
    kernels = (p for p in sources() if p.relative_to(CSRC).parts[0] in {"cpu", "cuda"})
    named = re.compile(rf"\b({'|'.join(names)})\b")
    yield from find_in(kernels, named, "a kernel names a divergence")


def definition() -> str:
    return (CSRC / "divergence.h").read_text()


def check_files() -> Iterator[str]:
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split("\0")
    files = (ROOT / name for name in listed if name)
    yield from find_in(filter(Path.is_file, files), MACHINE_PATH, "a path of one machine")


def main() -> int:
    violations = [*check_imports(), *check_csrc(), *check_files()]
    print("\n".join(violations) or "layers, kernels and paths: nothing found")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
