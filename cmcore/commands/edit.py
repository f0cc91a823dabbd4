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
from cmcore.commands.sample import away_from, decoded, encode_prompts, opened, option_errors
from cmcore.data.decoded import Decoding
from cmcore.data.files import check_target, save_image, save_images
from cmcore.data.sources.decode import decode
from cmcore.tensors import to_float, to_uint8

RESTORED = ("inpaint", "colourise", "super-resolution")
IN_LATENTS = ("inpaint", "stroke", "interpolate")
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
    prompts: Sequence[str],
    guidance: float | None,
    negative: str | None,
    seed: int,
    ema: str,
    device: str,
    method: str,
) -> Sequence[str]:
    """Edit, write, and say in lines what was done and how well the known part is kept."""
    target, known, missing, source = start / out, None, None, torch.empty(0)
    with option_errors():
        check_target(target)
        run = opened(what, root, start, ema=ema, device=device, method=method)
        space = _space(run, root, task)
        more = {"count": count if count > 1 else None, "factor": factor, "sigma": sigma, "steps": steps}
        _check_inputs(task, image, mask=mask, **more)
        _check_label(run, label)
        if prompts and label is not None:
            raise CommandError(f"--prompt: expected classes or captions, got both, --label {label} too")
        sampler = run.row() if task == "interpolate" else None
        if guidance is not None:
            sampler = run.sampler(guidance=guidance)
        if negative is None:
            encode_prompts(run, root, prompts)
        else:
            sampler = away_from(negative, run, root, sampler, prompts)
        told = [label] if label is not None else prompts
        chosen: Any = [told[index % len(told)] for index in range(count)] if told else None
        labels = run.labels(count, seed=seed, chosen=chosen)
        labels = None if labels is None else labels.to(run.device)
        if task == "interpolate":
            count = FRAMES if count == 1 else count
            one = None if labels is None else labels[:1]  # one label all the way
            images, nfe = editing.interpolate(run, (seed, seed + 1), count, label=one, sampler=sampler)
        else:
            assert image is not None
            given = _read(start / image, _image_shape(run, space), task).to(run.device)
            if task in RESTORED:
                missing = None if mask is None else _missing(start / mask, given)
                whole, source = to_float(given) if space is None else space.encode(given), given
                there = _positions(missing, whole.shape[2])
                known = editing.known_part(task, whole, missing=there, factor=factor or FACTOR, resolution=run.shape[1])
                wanted = replace(known, coefficients=known.coefficients.expand(count, *known.coefficients.shape[1:]))
                images, nfe = editing.restore(
                    run, wanted, range(count), steps=steps or editing.STEPS, seed=seed, labels=labels, sampler=sampler
                )
            elif task == "stroke":
                whole = to_float(given) if space is None else space.encode(given)
                painting = whole.expand(count, *whole.shape[1:])
                images, nfe = editing.stroke(
                    run, painting, sigma=sigma, steps=steps, seed=seed, labels=labels, sampler=sampler
                )
            else:
                one = None if labels is None else labels[:1]
                images, nfe = editing.denoise(run, to_float(given), sigma, one, sampler)
    pixels = (to_uint8(images) if space is None else space(images.float())).cpu()
    if space is not None and task == "inpaint":  # a codec changes the known pixels, too
        assert missing is not None
        pixels = torch.where(missing.cpu(), pixels, source.cpu())
    if len(pixels) == 1:
        save_image(pixels[0].numpy(), target)
    else:
        save_images(pixels.numpy(), target, columns=len(pixels) if task == "interpolate" else 0)
    lines = [f"{task} with {run.name} (EMA {run.model.profile}, NFE {nfe}, seed {seed}): {out}"]
    if known is not None and space is not None:
        lines.append(
            f"the known latents are off by at most {known.error(images):.1e}; known pixels are those of the image"
        )
    elif known is not None:
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


def _space(run: TrainedRun, root: Path, task: Task) -> Decoding | None:
    """The codec of a model of latents; None for one of images."""
    if run.to_images is to_uint8:
        return None
    if task not in IN_LATENTS:
        able = ", ".join(IN_LATENTS)
        raise CommandError(f"--task: expected one of {able}, as {run.name} makes latents, got {task}")
    found = decoded(run, root, Path("images.png")).to_images
    if not isinstance(found, Decoding):
        raise CommandError(f"{run.name}: expected a model of images, or of latents with their codec")
    return found


def _image_shape(run: TrainedRun, space: Decoding | None) -> tuple[int, int]:
    """Channels and side of the images."""
    channels, side, _ = run.shape
    if space is not None:
        channels, side = space(torch.zeros(1, *run.shape, device=run.device)).shape[1:3]
    return channels, side


def _read(file: Path, shape: tuple[int, int], task: Task) -> Tensor:
    """An image file as uint8 (1, C, R, R), smaller where it is to be enlarged."""
    channels, resolution = shape
    if task == "colourise" and channels != 3:
        raise CommandError(f"--task: expected a model of colour images for colourise, got one of {channels} channel")
    pixels = _pixels(file, channels, "--image")
    height, width = pixels.shape[1:]
    fits = height == width and (resolution == height or (task == "super-resolution" and resolution % height == 0))
    if not fits:
        smaller = " or a square whose side divides that" if task == "super-resolution" else ""
        raise CommandError(f"--image: expected {resolution} x {resolution} pixels{smaller}, got {width} x {height}")
    return pixels[None]


def _pixels(file: Path, channels: int, option: str) -> Tensor:
    """uint8 (C, H, W) of an image file."""
    if not file.is_file():
        raise CommandError(f"{option}: expected an image file, got {file}")
    return torch.from_numpy(decode(file.read_bytes(), channels, name=str(file)).copy())


def _missing(mask: Path, given: Tensor) -> Tensor:
    """Where pixels are missing, bool (1, 1, H, W)."""
    white = _pixels(mask, 1, "--mask") > 127
    if white.shape[1:] != given.shape[2:]:
        size = " x ".join(map(str, (white.shape[2], white.shape[1])))
        raise CommandError(f"--mask: expected the size of the image, got {size}")
    return white[None].to(given.device)


def _positions(missing: Tensor | None, side: int) -> Tensor | None:
    """The positions of latents, or pixels, some of whose pixels are missing, bool (1, 1, side, side)."""
    if missing is None or missing.shape[2] == side:
        return missing
    return torch.nn.functional.max_pool2d(missing.float(), missing.shape[2] // side) > 0
