"""A finding of `cmlab doctor`."""

from typing import Literal, NamedTuple

OK: Literal["ok"] = "ok"
WARN: Literal["warn"] = "warn"
FAIL: Literal["FAIL"] = "FAIL"


class Finding(NamedTuple):
    """The state of one part, and for all but `ok` the remedy."""

    part: str
    state: Literal["ok", "warn", "FAIL"]
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line."""
        line = f"{self.state:<4}  {self.part:<10}  {self.text}" + (f"; {self.remedy}" if self.remedy else "")
        return " ".join(line.splitlines())
