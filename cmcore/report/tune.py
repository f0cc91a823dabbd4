"""What a search found, as files: ranked trials, the best values ready to be pasted, and figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cmcore.numbers import short
from cmcore.report.plots import save
from cmcore.report.trials import SearchReport, importances, rungs
from cmcore.report.tune_figures import importance, parallel


def write_search(search: SearchReport, out: Path) -> list[Path]:
    """Write index.md, trials.json, trials.csv, best.yaml, and the figures parallel and importance, under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"trials.json": _json(search), "trials.csv": _csv(search), "best.yaml": _yaml(search)}
    texts["index.md"] = _page(search)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    figures = {"parallel": parallel(search), "importance": importance(search)}
    drawn = [path for name, figure in figures.items() for path in save(figure, out, name)]
    return [*(out / name for name in texts), *drawn]


def _json(search: SearchReport) -> str:
    data = {
        "name": search.name,
        "base": search.base,
        "fingerprint": search.fingerprint,
        "metric": search.metric,
        "best": search.best,
        "confirmed": [dict(one) for one in search.confirmed],
        "importance": importances(search),
        "trials": [
            {"trial": row.key, "outcome": row.outcome, "values": dict(row.values), "scores": dict(row.scores)}
            for row in search.rows
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def _csv(search: SearchReport) -> str:
    marks, paths = rungs(search), [axis.path for axis in search.axes]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "trial", "outcome", *paths, *(f"fd at {images} images" for images in marks)])
    for rank, row in enumerate(search.rows, start=1):
        values = [row.values.get(path, "") for path in paths]
        writer.writerow([rank, row.key, row.outcome, *values, *(row.scores.get(images, "") for images in marks)])
    return buffer.getvalue()


def _yaml(search: SearchReport) -> str:
    best = search.best_row
    finished = sum(row.outcome == "finished" for row in search.rows)
    lines = [
        f"# The best of the search {search.name!r}: {search.metric} {best.final:.4g} (trial {best.key}).",
        f"# {len(search.rows)} trials, {finished} of which came to their end.",
        *(f"# Seed {one['seed']:g}: {_before_after(one)}" for one in search.confirmed),
        f"# `make adopt NAME={search.name}` writes this into params.yaml.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(dict(search.best), sort_keys=False)


def _page(search: SearchReport, top: int = 10) -> str:
    """A page for those who browse the repository."""
    paths = [axis.path for axis in search.axes]
    lines = [
        f"# Search `{search.name}` over the run `{search.base}`",
        f"Ranked by {search.metric}: the lower, the better. `make adopt NAME={search.name}` takes the best over.",
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
            *(short(row.values[path]) for path in paths),
            f"{row.final:.4g}",
            max(row.scores, default=0),
            row.outcome,
        ]
        for rank, row in enumerate(search.rows[:top], start=1)
    ]
    lines.append(
        f"The best {len(rows)} of {len(search.rows)} trials (all: [trials.csv](trials.csv)):\n\n"
        + _table(["rank", *paths, "fd", "images", "end"], rows)
    )
    lines.append("![Each line is a trial; the bold one is the best, grey ones were stopped.](parallel.png)")
    lines.append("![How much of the variance of ln fd a parabola in each parameter explains.](importance.png)")
    return "\n\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _before_after(one: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in one.items() if name != "seed")
