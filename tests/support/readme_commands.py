"""The shell commands that README shows."""

import re
import shlex
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def blocks(language: str) -> list[str]:
    """The text of README's code blocks in a language."""
    found = BLOCK.findall(README.read_text(encoding="utf-8"))
    return [text for _, marked, text in found if marked == language]


def commands() -> list[list[str]]:
    """Every command in a shell block as words, without its comment and without variables set for it."""
    lines = (shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines())
    return [words[_variables(words) :] for words in lines if len(words) > _variables(words)]


def _variables(words: list[str]) -> int:
    return next((place for place, word in enumerate(words) if not ASSIGNMENT.match(word)), len(words))
