"""Errors in what a user gives, each of one printable line, however hostile the names and values in it."""

import re

LONGEST = 1000  # characters of a line
_ADDRESS = re.compile(r"<([\w.]+) object at 0x[0-9a-f]+>")


class DataError(ValueError):
    """The data are not what they must be.

    Args:
        *lines: the lines of the message, of which nearly every error has one; the first names the file.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def printable(text: str, longest: int = LONGEST) -> str:
    """The text as one line: control characters escaped, cut to the length."""
    shown = text if len(text) <= longest else text[:longest] + " ..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def reason(error: BaseException, longest: int = 200) -> str:
    """The message of a library's exception on one line, without addresses in memory; its class where it has none."""
    return " ".join(_ADDRESS.sub(r"\1", str(error)).split())[:longest] or type(error).__name__
