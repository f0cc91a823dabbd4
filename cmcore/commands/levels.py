"""`cmlab levels`: the noise levels of a few-step model's steps, searched for."""

import json
from collections.abc import Iterator
from pathlib import Path

from cmcore.assemble.level_search import search_levels
from cmcore.commands.sample import decoded, opened, option_errors
from cmcore.evaluate.collect import collect
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.reference import load_reference
from cmcore.pipeline.common import load
from cmcore.pipeline.progress import Done, listener
from cmcore.report.levels import level_search
from cmcore.report.plots import save


def levels(name: str, root: Path, *, steps: int, samples: int, device: str) -> Iterator[str]:
    """Search, write <run>.json, .png and .svg into reports/<workload>/levels, and say the best of each number of steps.

    Raises:
        ConfigError: there is no such run.
        DataError: weights or reference are missing.
        CommandError: the run has no levels to choose.
    """
    setup = load(root)
    setup.project.run(name)
    folders = setup.folders
    folders.require([folders.weights(name), folders.reference])
    out = folders.reports / "levels"
    with option_errors():
        run = decoded(opened(name, root, root, ema="", device=device), root, out / "images")
        reference = load_reference(folders.reference, device=run.device)
        seed = setup.project.sections.eval.seed
        with listener(f"levels {name}", "image") as listen:
            done = 0

            def on_images(count: int) -> None:
                nonlocal done
                done += count
                listen(Done(done, done))  # how many there will be is decided on the way

            found = search_levels(
                run, reference, out / f"{name}.json", steps=steps, samples=samples, seed=seed, on_images=on_images
            )
    record = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    tried = {tuple(row["levels"]): row["distance"] for row in record["tried"]}
    batches = run.batches(range(samples), sampler=run.sampler(1), seed=record["settings"]["seed"])
    (part,) = collect(batches, [reference.extractor], shard=samples, keep=0, device=run.device)
    one_step = frechet_distance(part.moments, reference.moments)
    save(level_search(name, tried, found, one_step), out, name)
    yield f"1 step: distance {one_step:.4g}"
    for chosen in found:
        shown = ",".join(f"{level:.4g}" for level in chosen)
        yield f"{len(chosen) + 1} steps: distance {tried[chosen]:.4g} with --levels {shown}"
    yield f"{len(tried)} sets of levels, {samples} samples each, in {(out / name).relative_to(root)}.json and .png"
