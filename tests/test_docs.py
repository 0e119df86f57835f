"""The README and the pages under `docs/`: their code runs, their links lead somewhere.

All ```python blocks of a page run in order in one namespace, in an empty directory. What would
clutter a page stands in a comment that opens with the line `<!-- python` and is run in its place;
it may import the tiny models of the examples.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastdistill as fd

pytestmark = [  # of the frameworks that pages use
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    pytest.mark.filterwarnings("ignore:The '[a-z]+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
]

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKED = [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md"))]

CODE = re.compile(r"^(?:```python|<!-- python)\n(.*?)^(?:```|-->)$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```(?:bash|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """(line, code) of every block that runs."""
    text = page.read_text()
    for match in CODE.finditer(text):
        yield text.count("\n", 0, match.start(1)), match[1]


def imported_packages(page: Path) -> set[str]:
    """What the page's own code imports, by the first name."""
    nodes = [node for _, code in blocks(page) for node in ast.walk(ast.parse(code))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    for package in sorted(imported_packages(page)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "page", "__file__": str(page)}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, name_of(page), "exec"), namespace)  # errors name the line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_is_missed(page: Path) -> None:
    """A block that is indented, or fenced in another way, would be shown but never run."""
    text = page.read_text()
    assert len(re.findall(r"(?:`{3,}|~{3,}) *\{? *\.?py|<!-- *python", text)) == len(
        [*blocks(page)]
    )


def test_command_lines_name_options_that_exist() -> None:
    typer = pytest.importorskip("typer")
    from fastdistill.cli import app

    commands = typer.main.get_command(app).commands
    shell = "\n".join(block for page in LINKED for block in SHELL.findall(page.read_text()))
    lines = re.findall(r"python -m fastdistill (\w+)(.*)", shell)
    assert lines
    for command, rest in lines:
        known = {option for param in commands[command].params for option in param.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known | {"--help"}, command


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs make of a heading."""
    return re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    outside_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(line) for line in re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert DOCS not in page.parents or DOCS in target.parents, f"{path} is not on the site"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1].split("\n\n")[0]
    assert sorted(re.findall(r"\S+\.md", nav)) == sorted(
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    )


def test_the_citation_names_this_version() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == fd.__version__
