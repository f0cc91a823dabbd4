"""`make readme`: copy the comparison table of the default workload between the markers of README.md."""

import re
import sys
from pathlib import Path

from cmcore.atomic import write_atomic

TABLE = Path("reports/digits/tables/comparison.md")
README = Path("README.md")
BLOCK = re.compile(r"(?<=<!-- results:start -->\n).*?(?=<!-- results:end -->)", re.DOTALL)


def with_table(readme: str, table: str) -> str:
    """README's text with the table in its place.

    Raises:
        ValueError: the markers are missing.
    """
    if len(BLOCK.findall(readme)) != 1:
        raise ValueError(f"{README}: expected one pair of markers <!-- results:start --> and <!-- results:end -->")
    return BLOCK.sub(lambda _: f"\n{table.strip()}\n\n", readme)


def main() -> None:
    """Rewrite README.md."""
    text = with_table(README.read_text(encoding="utf-8"), TABLE.read_text(encoding="utf-8"))
    write_atomic(README, text.encode())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
