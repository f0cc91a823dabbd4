"""README's numbers are the report's, word for word."""

import subprocess
from pathlib import Path

import pytest

from cmcore.commands.place import CommandError
from cmcore.commands.readme import README, TABLE, with_table

ROOT = Path(__file__).resolve().parents[2]


def committed(path: Path) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{path}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{path} is not in git's HEAD here")
    return done.stdout


def test_the_committed_readme_shows_the_committed_table():
    readme, table = committed(README), committed(TABLE)
    assert with_table(readme, table) == readme


def test_the_table_replaces_what_stood_between_the_markers():
    text = "a\n<!-- results:start -->\nold 1\\2\n<!-- results:end -->\nb\n"
    assert with_table(text, "| x |\n") == "a\n<!-- results:start -->\n\n| x |\n\n<!-- results:end -->\nb\n"
    assert with_table(with_table(text, "| x |\n"), "| y |") == with_table(text, "| y |")


@pytest.mark.parametrize("text", ["no markers", "<!-- results:end -->\n<!-- results:start -->\n"])
def test_missing_markers_are_an_error(text: str):
    with pytest.raises(CommandError, match="markers"):
        with_table(text, "| x |")
