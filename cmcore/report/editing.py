"""Zero-shot editing in the report: errors of every model beside those of diffusion models, and what they made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cmcore.config import read
from cmcore.report.captions import commit, run_title, title
from cmcore.report.cells import DASH, Cell, Column, Table, count, marked, measured
from cmcore.report.gallery import Edit, Edited, Restored, gallery
from cmcore.report.page import Picture, Section
from cmcore.report.plots import save
from cmcore.report.readers import Images, ReportError, RunReport, read_json

ERRORS, IMAGES = "edits.json", "edits.npz"
TRUTH, KNOWN = "truth", "known_"
TASKS = {"inpaint": "Inpainting", "colourise": "Colourisation", "super-resolution": "Super-resolution"}
EMPTY = Cell(DASH)


@dataclass(frozen=True, kw_only=True)
class Editing:
    """The content of edits.json."""

    workload: str
    data: str  # digest of the images' data set
    held_out: bool  # whether no run has trained on it
    images: tuple[int, ...]  # places of the images in it
    seed: int  # of the noise
    factor: int  # of super-resolution; 0 for none
    fingerprints: dict[str, str]  # of the runs
    code: str  # git commit
    diffusion: tuple[str, ...]  # those of them that are diffusion models
    fixed: tuple[str, ...]  # runs that cannot restore, as their steps are fixed
    errors: dict[str, tuple[Restored, ...]]  # by task


def result_key(task: str, one: Restored) -> str:
    """The name of a model's images in edits.npz."""
    return f"{task}_{one.steps}_{one.model}"


def read_editing(folder: Path | None) -> tuple[Editing, Images, list[Edit]] | None:
    """The facts, the truth and the edits with their images; None where there are none.

    Raises:
        ReportError: a file is missing or malformed.
    """
    if folder is None or not (folder / ERRORS).exists():
        return None
    facts = read_json(folder / ERRORS, partial(read, Editing))
    if not any(facts.errors.values()):
        return None
    try:
        with np.load(folder / IMAGES, allow_pickle=False) as arrays:
            edits = [
                Edit(
                    task=task,
                    known=arrays[f"{KNOWN}{task}"],
                    results=[Edited(**vars(one), images=arrays[result_key(task, one)]) for one in found],
                )
                for task, found in facts.errors.items()
            ]
            return facts, arrays[TRUTH], edits
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{folder / IMAGES}: expected the images of {ERRORS}, got: {error}") from error


def editing_table(facts: Editing, runs: Mapping[str, RunReport]) -> Table:
    """A row per run and number of evaluations, a column per task; marks are of those with equally many."""
    rows, groups = [], []
    by_row: dict[tuple[int, str], dict[str, Restored]] = {}
    for task, found in facts.errors.items():
        for one in found:
            by_row.setdefault((one.steps, one.model), {})[task] = one
    for (steps, name), found in sorted(by_row.items(), key=lambda row: row[0][0]):
        run, any_one = runs.get(name), next(iter(found.values()))
        errors = (found.get(task) for task in facts.errors)
        rows.append(
            (
                Cell(name),
                Cell(title(run.facts.method) if run else DASH),
                Cell("replacement" if name in facts.diffusion else "projection"),
                count(any_one.nfe),
                *(EMPTY if one is None else measured(one.error, one.standard_error) for one in errors),
                Cell(f"{max(one.known_error for one in found.values()):.1e}"),
                Cell(facts.fingerprints.get(name, "")),
            )
        )
        groups.append(str(steps))
    columns = (
        Column("run", "Run"),
        Column("method", "Method"),
        Column("way", "Known part kept by"),
        Column("nfe", "NFE"),
        *(Column(task, TASKS.get(task, task), "low") for task in facts.errors),
        Column("known", "Known part off by", minor=True),
        Column("fingerprint", "Fingerprint of the run", minor=True),
    )
    table = Table("editing", "Errors of zero-shot editing", columns, tuple(rows), _caption(facts), tuple(groups))
    return marked(table)


def _caption(facts: Editing) -> str:
    whose = "held-out images" if facts.held_out else "training images"
    steps = sorted({one.steps for found in facts.errors.values() for one in found})
    parts = [
        f"Root mean square over the pixels of [-1, 1], mean and standard error over {len(facts.images)} {whose} "
        f"(digest {facts.data[:12]}, noise seed {facts.seed}, code {commit(facts.code)}); lower is better.",
        f"Every model has at most {' or '.join(map(str, steps))} evaluations; a diffusion model takes an odd number of "
        "them, a few-step model those of the levels that it has learned.",
        "Replacement: known part under noise before each step of the diffusion model's ODE (2011.13456, App. I.2); "
        "projection: Algorithm 4 of 2303.01469.",
        "Inpainting fills the middle half of each side."
        + (f" Super-resolution starts from means of {facts.factor} x {facts.factor} pixels." if facts.factor else ""),
        f"Steps too fixed to edit with: {', '.join(facts.fixed)}." if facts.fixed else "",
        "Bold: best of its column; italic: best at its number of evaluations.",
    ]
    return " ".join(part for part in parts if part)


def editing_section(folder: Path | None, runs: Sequence[RunReport], figures: Path) -> tuple[Section, ...]:
    """The section of the page, whose figures are written to a folder; none without edits. Old figures go."""
    found, drawn, table = read_editing(folder), list[Picture](), ()
    if found is not None:
        facts, truth, edits = found
        table = (editing_table(facts, {run.facts.run: run for run in runs}),)
        most = max(one.steps for edit in edits for one in edit.results)
        names = {run.facts.run: run_title(run) for run in runs}
        for edit in edits:
            shown = [one.called(names.get(one.model, one.model)) for one in edit.results if one.steps == most]
            figure = gallery(truth, [Edit(task=edit.task, known=edit.known, results=shown)])
            path, _ = save(figure, figures, f"editing_{edit.task.replace('-', '_')}")
            caption = (
                f"{TASKS.get(edit.task, edit.task)}, at most {most} evaluations: the truth, what is known of it, and "
                "what each model makes of that."
            )
            alt = f"Grid of images restored by {edit.task}, one row per run."
            drawn.append(Picture(path=path, caption=caption, alt=alt))
    kept = {end for picture in drawn for end in (picture.path, picture.path.with_suffix(".svg"))}
    for old in set(figures.glob("editing_*")) - kept:
        old.unlink()
    if not table:
        return ()
    text = (
        "Known images with a part taken away, restored without training for it: by consistency functions and other "
        "maps that may start at any level, beside diffusion models with as many evaluations."
    )
    return (Section(title="Zero-shot editing", text=(text,), tables=table, figures=tuple(drawn)),)
