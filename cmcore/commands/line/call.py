"""The call, the options and the printing that the commands of `cmlab` share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

NAME = "cmlab"
Device = Literal["auto", "cpu", "cuda"]
MODEL = "A run of params.yaml, WORKLOAD/RUN, a folder of results, or a weight file, also a public one."
EMA = "Average of the weights: a name in train.ema, raw, or the width of a power-function EMA, such as 0.05."


@dataclass
class Call:
    """One call of the command line."""

    words: Sequence[str] = ()
    command: str = ""
    start: Path = field(default_factory=Path.cwd)


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        print(line, flush=True)
