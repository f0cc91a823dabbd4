"""`cmlab gallery`: edits of image files by several models, as a figure with errors."""

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cmcore.assemble.gallery import edits
from cmcore.assemble.summary import file_digest
from cmcore.atomic import write_atomic
from cmcore.closure import revision
from cmcore.commands.place import CommandError
from cmcore.commands.sample import numbers, opened, option_errors
from cmcore.data.sources.decode import decode_all
from cmcore.report.gallery import gallery as figure
from cmcore.report.plots import save

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")


def gallery(
    models: Sequence[str],
    root: Path,
    start: Path,
    *,
    images: Path,
    count: int,
    steps: str,
    factor: int,
    out: Path,
    seed: int,
    device: str,
) -> Iterator[str]:
    """Edit, draw and write gallery.png, gallery.svg and gallery.json; yields a line for each result."""
    folder, target = start / images, start / out
    counts = numbers(steps, int, "--steps")
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)[:count]
    if not files:
        raise CommandError(f"--images: expected a folder with image files, got {images}")
    runs = [opened(what, root, start, ema="", device=device) for what in models]
    shapes = {run.shape for run in runs}
    if len(shapes) > 1:
        raise CommandError(f"MODEL: expected models of the same images, got shapes {', '.join(map(str, shapes))}")
    channels, resolution, _ = runs[0].shape
    truth = decode_all([(str(file), file.read_bytes()) for file in files], channels, resolution, "lanczos")
    with option_errors():
        found = edits(runs, torch.from_numpy(truth), steps=counts, factor=factor, seed=seed)
    save(figure(truth, found), target, "gallery")
    described = {
        "images": {file.name: file_digest(file) for file in files},
        "models": {run.name: run.model.meta.get("fingerprint", "") for run in runs},
        "seed": seed,
        "factor": factor,
        "code": revision(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "errors": [{"task": edit.task, **one.numbers} for edit in found for one in edit.results],
    }
    write_atomic(target / "gallery.json", (json.dumps(described, indent=2) + "\n").encode())
    for edit in found:
        for one in edit.results:
            kept = f"the known part is off by {one.known_error:.1e}"
            yield f"{edit.task}, {one.model}, NFE {one.nfe}: error {one.error:.4f} ± {one.standard_error:.4f}; {kept}"
    yield f"{out}/gallery.png shows {len(files)} images"
