"""`cmlab edit`: zero-shot editing of an image file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore.assemble import editing
from cmcore.assemble.editing import Task
from cmcore.assemble.results import TrainedRun
from cmcore.commands.place import CommandError
from cmcore.commands.sample import opened, option_errors
from cmcore.data.files import check_target, save_image, save_images
from cmcore.data.sources.decode import decode
from cmcore.sample.known import Known
from cmcore.tensors import to_float, to_uint8

RESTORED = ("inpaint", "colourise", "super-resolution")
FACTOR = 2
FRAMES = 8  # of an interpolation
TAKES = {  # the options of each task, beside those of every one
    "inpaint": ("image", "mask", "steps", "count"),
    "colourise": ("image", "steps", "count"),
    "super-resolution": ("image", "factor", "steps", "count"),
    "stroke": ("image", "sigma", "steps", "count"),
    "denoise": ("image", "sigma"),
    "interpolate": ("count",),
}


def edit(
    what: str,
    root: Path,
    start: Path,
    *,
    task: Task,
    image: Path | None,
    mask: Path | None,
    factor: int | None,
    sigma: float,
    out: Path,
    count: int,
    steps: int,
    label: int | None,
    seed: int,
    ema: str,
    device: str,
    method: str,
) -> Sequence[str]:
    """Edit, write, and say in lines what was done and how well the known part is kept."""
    target, known = start / out, None
    with option_errors():
        check_target(target)
        run = opened(what, root, start, ema=ema, device=device, method=method)
        if run.to_images is not to_uint8:
            raise CommandError(f"{run.name} makes latents; expected a model of images")
        more = {"count": count if count > 1 else None, "factor": factor, "sigma": sigma, "steps": steps}
        _check_inputs(task, image, mask=mask, **more)
        _check_label(run, label)
        labels = run.labels(count, seed=seed, chosen=None if label is None else [label] * count)
        labels = None if labels is None else labels.to(run.device)
        if task == "interpolate":
            count = FRAMES if count == 1 else count
            chosen = None if labels is None else int(labels[0])  # one class all the way
            images, nfe = editing.interpolate(run, (seed, seed + 1), count, label=chosen), run.row().nfe
        else:
            assert image is not None
            given = _read(start / image, run, task)
            if task in RESTORED:
                known = _known(run, task, given, mask if mask is None else start / mask, factor or FACTOR)
                wanted = replace(known, coefficients=known.coefficients.expand(count, *known.coefficients.shape[1:]))
                images, nfe = editing.restore(
                    run, wanted, range(count), steps=steps or editing.STEPS, seed=seed, labels=labels
                )  # fmt: skip
            elif task == "stroke":
                painting = given.expand(count, *given.shape[1:])
                images, nfe = editing.stroke(run, painting, sigma=sigma, steps=steps, seed=seed, labels=labels)
            else:
                images, nfe = editing.denoise(run, given, sigma, None if labels is None else labels[:1]), 1
    pixels = to_uint8(images).cpu()
    if len(pixels) == 1:
        save_image(pixels[0].numpy(), target)
    else:
        save_images(pixels.numpy(), target, columns=len(pixels) if task == "interpolate" else 0)
    lines = [f"{task} with {run.name} (EMA {run.model.profile}, NFE {nfe}, seed {seed}): {out}"]
    if known is not None:
        grey_levels = 127.5 * known.error(to_float(pixels).to(run.device))
        lines.append(
            f"the known part is off by at most {known.error(images):.1e}, as 8-bit pixels by {grey_levels:.3g} of 255"
        )
    return lines


def _check_inputs(task: Task, image: Path | None, **more: Any) -> None:
    if (image is None) != (task == "interpolate"):
        raise CommandError(f"--image: expected {'none' if image else 'a file'} for {task}, got {image or 'none'}")
    for option, value in more.items():
        if value and option not in TAKES[task]:
            raise CommandError(f"--{option}: expected none for {task}, got {value}")


def _check_label(run: TrainedRun, label: int | None) -> None:
    classes = run.model.shape.classes
    if label is not None and not classes:
        why = "reads captions" if run.model.shape.reads else "is unconditional"
        raise CommandError(f"--label: expected none, as the network {why}, got {label}")
    if label is not None and not 0 <= label < classes:
        raise CommandError(f"--label: expected a class from 0 to {classes - 1}, got {label}")


def _read(file: Path, run: TrainedRun, task: Task) -> Tensor:
    """An image file as float32 (1, C, R, R) in [-1, 1], smaller where it is to be enlarged."""
    channels, resolution, _ = run.shape
    if task == "colourise" and channels != 3:
        raise CommandError(f"--task: expected a model of colour images for colourise, got one of {channels} channel")
    pixels = _pixels(file, channels, "--image")
    height, width = pixels.shape[1:]
    fits = height == width and (resolution == height or (task == "super-resolution" and resolution % height == 0))
    if not fits:
        smaller = " or a square whose side divides that" if task == "super-resolution" else ""
        raise CommandError(f"--image: expected {resolution} x {resolution} pixels{smaller}, got {width} x {height}")
    return to_float(pixels)[None].to(run.device)


def _pixels(file: Path, channels: int, option: str) -> Tensor:
    """uint8 (C, H, W) of an image file."""
    if not file.is_file():
        raise CommandError(f"{option}: expected an image file, got {file}")
    return torch.from_numpy(decode(file.read_bytes(), channels, name=str(file)).copy())


def _known(run: TrainedRun, task: Task, given: Tensor, mask: Path | None, factor: int) -> Known:
    missing = None
    if mask is not None:
        white = _pixels(mask, 1, "--mask") > 127
        if white.shape[1:] != given.shape[2:]:
            size = " x ".join(map(str, (white.shape[2], white.shape[1])))
            raise CommandError(f"--mask: expected the size of the image, got {size}")
        missing = white[None].to(run.device)
    return editing.known_part(task, given, missing=missing, factor=factor, resolution=run.shape[1])
