"""`cmlab toy`: every method on points of the plane, beside the exact flow, as one page."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cmcore import plugins
from cmcore.assemble.summary import file_digest
from cmcore.assemble.toy import DATA, SEED, SETTINGS, scene, toy_project
from cmcore.atomic import write_atomic
from cmcore.closure import revision
from cmcore.pipeline.progress import Done, listener
from cmcore.report.toy import along, page, panels, write_png
from cmcore.train.timing import device_name


def toy(root: Path, out: Path, data: str, *, images: int = 0) -> Iterator[str]:
    """Train and draw on one data set or all, with a line for each; write the page, the figures and toy.json."""
    torch.set_num_threads(1)  # small products gain nothing from more
    shorter = {"train": {"images": images, "lr_ref_images": 0}}
    project = toy_project({"runs": dict.fromkeys(toy_project().runs, shorter)} if images else {})
    parts, records = [], {}
    for name in DATA if data == "all" else (data,):
        begun, done = time.process_time(), 0
        with listener(f"toy {name}", "run") as listen:

            def on_run(_: str, listen=listen) -> None:
                nonlocal done
                listen(Done(done, len(project.runs)))
                done += 1

            seen, rows = scene(name, project, on_run)
        write_png(panels(seen), out / f"{name}.png")
        write_png(along(seen), out / f"{name}_along.png")
        seconds = time.process_time() - begun
        numbers = [
            {"name": one.name, "method": _title(project.runs[run].method), "nfe": one.nfe, "map_error": one.map_error,
             "energy": one.energy}
            for run, drawn in rows.items() for one in drawn
        ]  # fmt: skip
        exact = {"name": "exact flow", "method": "", "nfe": 0, "map_error": 0.0, "energy": seen.exact.energy}
        parts.append(
            {"title": name, "panels": f"{name}.png", "along": f"{name}_along.png", "rows": [exact, *numbers]}
        )  # fmt: skip
        records[name] = {"seconds": round(seconds, 1), "rows": [exact, *numbers]}
        yield f"{name}: {len(project.runs)} runs in {seconds:.0f} s of processor time"
    device = device_name(torch.device("cpu"))
    facts = {
        "code": revision(), "settings": file_digest(SETTINGS), "images": images, "seed": SEED,
        "torch": torch.__version__, "device": device,
    }  # fmt: skip
    took = ", ".join(f"{name} in {record['seconds']:.0f} s of processor time" for name, record in records.items())
    described = (
        f"Made by cmlab toy: code {facts['code'][:12]}, settings {facts['settings'][:12]}, seed {SEED}, PyTorch "
        f"{torch.__version__}, {device}; {took}. Numbers: toy.json."
    )
    sigma_data = project.sections.diffusion.sigma_data
    write_atomic(out / "index.html", page(parts, sigma_data=sigma_data, provenance=described).encode())
    write_atomic(out / "toy.json", (json.dumps({**facts, "data": records}, indent=1) + "\n").encode())
    yield f"{out}/index.html shows {', '.join(records)}"


def _title(method: str) -> str:
    """The first line of a method's documentation."""
    text = plugins.load("cmcore.methods", method).__doc__ or method
    return text.strip().splitlines()[0]
