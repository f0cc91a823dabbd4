"""A chosen workload as a parameter file for people: every choice with its reason."""

from collections.abc import Mapping
from typing import Any

import yaml

from cmcore.assemble.run import RANDOM
from cmcore.budget.choose import Choice
from cmcore.budget.recipes import EPOCHS, book, level_shift
from cmcore.config import parse_yaml
from cmcore.numbers import duration, size

WIDE = 110  # columns up to which a mapping stays on one line


def text(choice: Choice) -> str:
    """The file. Read again it gives the same values, which is checked.

    Raises:
        AssertionError: it does not.
    """
    p, why = choice.parameters, reasons(choice)
    lines = [*(f"# {line}" for line in head(choice)), ""]
    for key, value in p.items():
        if key == "runs":
            lines += ["", f"runs:{said(why, 'runs')}", *runs(value, why)]
        elif isinstance(value, Mapping):
            lines += ["", f"{key}:{said(why, key)}"]
            for name, inner in value.items():
                lines += entry(name, inner, said(why, f"{key}.{name}"))
        else:
            lines += [*([""] if key == "conditional" else []), f"{key}: {scalar(value)}{said(why, key)}"]
    made = "\n".join(lines) + "\n"
    assert parse_yaml(made, "workload") == parse_yaml(yaml.safe_dump(p), "workload")
    return made


def said(why: Mapping[str, str], path: str) -> str:
    """The comment of a value."""
    return f" # {why[path]}" if path in why else ""


def entry(name: str, value: Any, comment: str) -> list[str]:
    """A value below a section; a mapping of mappings has a line for each."""
    if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
        return [f"  {name}:{comment}", *(f"    {key}: {scalar(inner)}" for key, inner in value.items())]
    return [f"  {name}: {scalar(value)}{comment}"]


def runs(entries: Mapping[str, Mapping[str, Any]], why: Mapping[str, str]) -> list[str]:
    """The runs, each with what its method is."""
    lines: list[str] = []
    for name, run in entries.items():
        lines.append(f"  {name}: # {book().methods[name].about}")
        for key, value in run.items():
            reason = said(why, f"runs.{name}.{key}")
            if isinstance(value, Mapping) and len(scalar(value)) > WIDE:
                lines += [f"    {key}:{reason}", *(f"      {inner}: {scalar(one)}" for inner, one in value.items())]
            else:
                lines.append(f"    {key}: {scalar(value)}{reason}")
    return lines


def scalar(value: Any) -> str:
    """A value on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).replace("\n...", "").strip()


def head(choice: Choice) -> list[str]:
    """What the file is for, and what was seen of the data."""
    r, seen = choice.request, choice.request.survey
    least, middle, most = seen.sides
    sides = f"{least} to {most} pixels, {middle} in the middle" if least != most else f"{least} pixels"
    labels = f", {seen.classes} classes" if seen.classes else ", no classes"
    where = f"{r.host.gpu} and {r.host.core_count}" if r.host.gpu else r.host.core_count
    lines = [
        f"Written by `cmlab new` for a budget of {duration(r.budget)} on {where}: about {duration(choice.total)}",
        f"with `make repro JOBS={choice.jobs}`. `make use WORKLOAD={r.name}` copies this file to params.yaml.",
        f"Data: {seen.count} images{labels}; shorter sides of {sides}"
        + ("." if seen.square else "; the central square of each is used."),
    ]
    if seen.duplicates:
        lines.append(f"{seen.duplicates} files repeat another one byte by byte: they count twice, also as test images.")
    if seen.decoded < seen.count:
        lines.append(f"{seen.decoded} of the images were decoded to write this; the stage `prepare` reads all.")
    return [*lines, "Noise levels are sigma, in units of [-1, 1] pixels."]


def reasons(choice: Choice) -> dict[str, str]:
    """The reason of each value, by dotted path."""
    p, r, seen = choice.parameters, choice.request, choice.request.survey
    train, teacher = p["train"], choice.project.run(book().teacher).train
    epochs = teacher.total / choice.count
    own = "as asked for" if r.resolution else "the highest at which the budget lets the diffusion model see enough"
    shift = level_shift(p["diffusion"]["sigma_data"], choice.resolution)
    names = ", ".join(seen.class_names)
    few = "seeds that follow each other; 1 as more take the same time again, and without them close rows are no order"
    why = {
        "replicates": few,
        "data.source": "what `data.path` names; docs/own-data.md lists the others",
        "data.resolution": own,
        "data.channels": "colour" if p["data"]["channels"] == 3 else "all images are grey",
        "data.background": "transparent images are laid over it: white or black",
        "data.test": "a tenth, on which nothing is trained; the tables have the distance to it as well",
        "data.classes": names if len(names) < 80 else "as the folders are, or the labels",
        "diffusion.sigma_data": "standard deviation of the pixels about the mean image",
        "diffusion.sigma_max": "the largest distance between two images, at most 80 (2006.09011, technique 1)",
        "diffusion.sigma_min": "EDM's (2206.00364)",
        "diffusion.rho": "of the grid of levels; EDM's",
        "conditional": "true tells the networks the classes" if seen.classes > 1 else "there are no classes",
        "net": f"{size(choice.weights)} parameters: the largest whose teacher sees an image for every six of them, "
        "or the smallest",
        "net.dropout": f"{size(epochs)} epochs" + (", many for so few images" if p["net"]["dropout"] else ""),
        "net.kind": choice.about + " (cmcore/budget/recipes.yaml has the choices)",
        "net.c_noise": "the level as ln(sigma)/4, as in EDM",
        "net.hidden": "width of the layers",
        "net.model_channels": "times channel_mult: channels at each resolution",
        "net.blocks": "residual blocks" + (" of each resolution" if "channel_mult" in p["net"] else ""),
        "net.channel_mult": "from the full resolution on, each half of the one before",
        "net.attention_resolutions": "the lowest resolution, as elsewhere it costs much",
        "net.augment_dim": "the network is told how its images were distorted",
        "net.sigma_data": "as of diffusion; the network has a linear part that is exact for Gaussian images",
        "train": "shared by all runs; `runs.<name>.train` overrides it",
        "train.images": f"of each student: {size(train['images'] / choice.count)} epochs",
        "train.batch": "with which network and learning rates were tried",
        "train.micro_batch": "rows computed at once, as fit the memory; 0 is all of them",
        "train.seed": "the first; replicates count on from it",
        "train.optimiser": "of runs that start from the diffusion model, as ECT's (2406.14548)",
        "train.lr": "at which the network was tried with this batch",
        "train.betas": "a second moment over 100 steps, as the run has few",
        "train.lr_ref_images": "from half of the run on",
        "train.lr_decay": "a run of this length has to come to rest; the papers' are far longer",
        "train.flip": "images may be mirrored: set it to false where left and right differ, as in text",
        "train.augment": "EDM's distortions (2206.00364, App. F.2), flips among them, as images come again and again; "
        "0 where left and right differ",
        "train.ema": "half-lives of averages of the weights, in images: a hundredth and a twenty-fifth of the run",
        "train.eval_ema": "the average that is measured, and that other runs start from",
        "train.snapshots": "moments of the curves of quality by images",
        "train.log_images": "a fortieth of the run",
        "train.checkpoint_seconds": "of work that a kill can cost",
        "train.precision": "half, on matrix units",
        "train.channels_last": "the faster layout for half precision",
        "train.jvp_precision": "of the derivatives by time in sCT and sCD",
        "runs": "`init` names the run whose averaged weights a run starts from, `teacher` the one that teaches it",
        "eval.samples": "of every row, as a fifth of the budget allows; published FIDs have 50,000",
        "eval.batch": "images generated at once; no result depends on it beyond rounding",
        "eval.seed": "of the noise of the samples",
        "eval.teacher_steps": "Heun steps of the diffusion model, of two evaluations each but the last",
        "eval.bootstrap": "resamplings behind the +- of a Frechet distance",
        "eval.kid_subsets": "whose mean is KID",
        "eval.neighbours": "k of precision and recall (1904.06991)",
        "eval.endpoints": "samples that are compared with the end points of the diffusion model's ODE",
        "eval.scan_samples": "of each level that is tried",
        "eval.snapshot_samples": "of each moment of a run",
        "eval.kid_size": f"images of a subset: at most half of the {choice.count}",
        "eval.nearest": "samples whose nearest training images are searched for copies",
        "eval.scan": "levels of the second step that are tried",
        "eval.reference": "the classifier in whose features distances are measured" if seen.classes > 1
        else "a random network, as there are no classes to learn features from",
        "compute.backend": "several jobs side by side, on this machine or a cluster",
        "tracking.mlflow": "training and results as `cmlab ui` shows them",
        "compute.threads": f"of each of the {choice.jobs} jobs that run at a time",
    }  # fmt: skip
    for name, run in p["runs"].items():
        rules = book().methods[name].options
        levels = {key for key, value in rules.items() if isinstance(value, Mapping) and "level" in value}
        if levels:
            moved = f", moved by {shift}: the logarithm of sigma_data / 0.5"
            moved += " and of the side / 64" if choice.resolution > 64 else ""
            others = "; the others for short runs" if rules.keys() - levels else ""
            why[f"runs.{name}.options"] = f"levels as in the paper{moved if shift else ''}{others}"
        else:
            why[f"runs.{name}.options"] = "for short runs; options that are not here have the paper's values"
        share = "its own share of the time" if "images" in run.get("train", ()) else ""
        start = "optimiser and rate for random weights" if run["init"] == RANDOM else ""
        why[f"runs.{name}.train"] = ", ".join(filter(None, (share, start))) or "of this method"
        why[f"runs.{name}.sample"] = "the second of two steps: iCT's 0.821 for sigma_data = 0.5, in proportion"
    if choice.capped:
        why["train.images"] += f"; more than {EPOCHS} of the teacher teach nothing new"
    return {path: reason for path, reason in why.items() if reason}


HEADS = ("run", "starts from", "images", "epochs", "steps", "training", "evaluation", "memory")


def rows(choice: Choice) -> list[tuple[str, ...]]:
    """The plan as a table: its head, and a row for each run."""
    found: list[tuple[str, ...]] = [HEADS]
    for name, run in choice.project.runs.items():
        train = run.train
        found.append(
            (
                name, run.init, size(train.total), size(train.total / choice.count), size(train.steps),
                duration(choice.seconds[f"train@{name}"]), duration(choice.seconds[f"evaluate@{name}"]),
                f"{choice.memory[name] / 1e9:.2g} GB",
            )
        )  # fmt: skip
    return found
