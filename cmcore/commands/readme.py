"""`cmlab readme`: the default workload's headline table, copied between the markers of README.md."""

import re
from pathlib import Path

from cmcore.atomic import write_atomic
from cmcore.commands.place import CommandError

TABLE = Path("reports/digits/tables/headline.md")
README = Path("README.md")
BLOCK = re.compile(r"(?<=<!-- results:start -->\n).*?(?=<!-- results:end -->)", re.DOTALL)


def with_table(readme: str, table: str) -> str:
    """README's text with the table in its place.

    Raises:
        CommandError: the markers are missing.
    """
    if len(BLOCK.findall(readme)) != 1:
        raise CommandError(f"{README}: expected one pair of markers <!-- results:start --> and <!-- results:end -->")
    return BLOCK.sub(lambda _: f"\n{table.strip()}\n\n", readme)


def copy_table(root: Path) -> list[str]:
    """Rewrite README.md of a project folder.

    Raises:
        CommandError: the markers are missing, or there is no table yet.
    """
    if not (root / TABLE).is_file():
        raise CommandError(f"there is no {TABLE} yet; `cmlab repro` with the workload digits makes it")
    text = with_table((root / README).read_text(encoding="utf-8"), (root / TABLE).read_text(encoding="utf-8"))
    write_atomic(root / README, text.encode())
    return [f"{README} shows {TABLE}"]
