"""The files of a search: ranked trials, the best values ready to be pasted, and figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cmcore.numbers import short
from cmcore.report.formats import csv_cell, markdown_text, plain
from cmcore.report.importance import Axis
from cmcore.report.plots import save
from cmcore.report.search_figures import importance, parallel
from cmcore.report.searches import FILE, FINISHED, SearchResult


def write_search(search: SearchResult, axes: Sequence[Axis], out: Path) -> list[Path]:
    """Write index.md, trials.json, trials.csv, best.yaml, and the figures parallel and importance, under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {FILE: json.dumps(search.to_json(), indent=1) + "\n", "trials.csv": _csv(search, axes)}
    texts |= {"best.yaml": _yaml(search), "index.md": _page(search, axes)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    figures = {"parallel": parallel(search, axes), "importance": importance(search, [axis.path for axis in axes])}
    drawn = [path for name, figure in figures.items() for path in save(figure, out, name)]
    return [*(out / name for name in texts), *drawn]


def _csv(search: SearchResult, axes: Sequence[Axis]) -> str:
    rungs, paths = search.rungs, [axis.path for axis in axes]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows: list[list[Any]] = [["rank", "trial", "outcome", *paths, *(f"fd at {images} images" for images in rungs)]]
    for rank, trial in enumerate(search.trials, start=1):
        values = [trial.values.get(path, "") for path in paths]
        scores = [trial.scores.get(images, "") for images in rungs]
        rows.append([rank, trial.key, trial.outcome, *values, *scores])
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _yaml(search: SearchResult) -> str:
    best = search.trials[0]
    finished = sum(trial.outcome == FINISHED for trial in search.trials)
    lines = [
        f"# The best of the search {search.name!r}: {search.metric} {best.final:.4g} (trial {best.key}).",
        f"# {len(search.trials)} trials, {finished} of which came to their end.",
        *(f"# Seed {one['seed']:g}: {_before_after(one)}" for one in search.confirmed),
        f"# `make adopt NAME={search.name}` writes this into params.yaml.",
    ]
    return "\n".join(map(plain, lines)) + "\n" + yaml.safe_dump(dict(search.best), sort_keys=False)


def _page(search: SearchResult, axes: Sequence[Axis], top: int = 10) -> str:
    """A page for those who browse the repository."""
    paths = [axis.path for axis in axes]
    lines = [
        f"# Search `{search.name}` over the run `{search.base}`",
        f"Ranked by {markdown_text(search.metric)}: the lower, the better. "
        f"`make adopt NAME={search.name}` takes the best over.",
        "```yaml\n" + yaml.safe_dump(dict(search.best), sort_keys=False) + "```",
    ]
    if search.confirmed:
        names = [name for name in search.confirmed[0] if name != "seed"]
        lines.append(
            "On seeds that the search did not use:\n\n"
            + _table(["seed", *names], [[one["seed"], *(f"{one[n]:.4g}" for n in names)] for one in search.confirmed])
        )
    rows = [
        [
            rank,
            *(short(trial.values[path]) for path in paths),
            f"{trial.final:.4g}",
            max(trial.scores, default=0),
            trial.outcome,
        ]
        for rank, trial in enumerate(search.trials[:top], start=1)
    ]
    lines.append(
        f"The best {len(rows)} of {len(search.trials)} trials (all: [trials.csv](trials.csv)):\n\n"
        + _table(["rank", *paths, "fd", "images", "end"], rows)
    )
    lines.append("![Each line is a trial; the bold one is the best, grey ones were stopped.](parallel.png)")
    lines.append("![How much of the variance of ln fd a parabola in each parameter explains.](importance.png)")
    return "\n\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in lines)


def _before_after(one: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in one.items() if name != "seed")
