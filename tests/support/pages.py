"""The pages for readers, README and CONTRIBUTING among them: their code blocks, commands, links and headings."""

import re
import shlex
from pathlib import Path

from markdown.extensions.toc import slugify

ROOT = Path(__file__).resolve().parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
DOCS = ROOT / "docs"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=")
PROGRAMS = ("make", "cmlab", "dvc", "docker", "python -m")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", text(page))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks in a language."""
    return [block for _, marked, block in BLOCK.findall(text(page)) if marked == language]


def commands(page: Path) -> list[list[str]]:
    """Every command as words, of shell blocks and of prose, without comments and without variables set for it."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`", prose(page))
    split = [shlex.split(line, comments=True) for line in [*lines, *inline]]
    return [words[_variables(words) :] for words in split if len(words) > _variables(words)]


def _variables(words: list[str]) -> int:
    return next((place for place, word in enumerate(words) if not ASSIGNMENT.match(word)), len(words))


def links(page: Path) -> list[tuple[str, str]]:
    """(file, anchor) of every link and picture that stays inside the project; the file is empty for the page itself."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [(file, anchor) for file, _, anchor in (target.partition("#") for target in targets) if "://" not in file]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {slugify(re.sub(r"[`*]", "", title), "-") for title in titles}


def named_files(page: Path) -> list[str]:
    """The files and folders of the project that stand in the prose between backticks."""
    top = "benchmarks|cmcore|docs|reports|searches|stages|tests|workloads"
    return sorted(set(re.findall(rf"`((?:{top})/[\w./-]*)`", prose(page))))
