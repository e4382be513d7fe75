"""The documentation as tests read it: its pages, their code blocks, the commands in them, and what stands in backticks."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
GUIDES = ("README.md", "CONTRIBUTING.md", *DOCS)  # what must be true of the code as it is
PAGES = (*GUIDES, "RESULTS.md")  # RESULTS.md also tells of what was measured once


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every command of the page's bash blocks, continued lines joined, comments and blank lines left out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if shlex.split(line, comments=True)]


def commands_in_comments() -> list[tuple[str, str]]:
    """(file, command) of every command that a packaged configuration's comments, or the head of an entry point, shows on a line."""
    shown = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        shown += [(path, line.removeprefix("#")) for line in lines if line.startswith("#")]
    for path in sorted(path for path in ROOT.glob("*/*.py") if path.parent.name != "tests"):
        head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        shown += [(path, line) for line in head.splitlines()]
    start = re.compile(r"(accelerate launch|python -m|sidrec (codec )?[a-z-]+ --|bash run_)")
    return [(str(path.relative_to(ROOT)), line.strip()) for path, line in shown if start.match(line.strip())]


def prose(page: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def backticks(page: str) -> list[str]:
    """What stands in single backticks in the page's prose, in order, each once."""
    return list(dict.fromkeys(re.findall(r"`([^`]+)`", prose(page))))


def links(page: str) -> list[str]:
    """The targets of the page's links and pictures that lie in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith("https://")]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
