"""`cmlab export`: a model for use without this project."""

import json
from pathlib import Path
from typing import Literal

from cmcore.assemble.export import export_pipeline, export_program
from cmcore.closure import module_file
from cmcore.commands.place import CommandError
from cmcore.commands.sample import opened, option_errors

Kind = Literal["diffusers", "torch"]
SOURCE = "cmcore.edge.diffusers_pipeline"  # found, not imported: an export needs no diffusers


def export(what: str, root: Path, start: Path, *, to: Kind, out: Path, nfe: int, ema: str, method: str) -> str:
    """Write a program, or a folder for diffusers with what was measured of the run."""
    target = start / out
    with option_errors():
        run = opened(what, root, start, ema=ema, device="cpu", method=method)
        if to == "torch":
            if target.suffix != ".pt2":
                raise CommandError(f"--out: expected NAME.pt2, got {out}")
            export_program(run, target)
            return (
                f"{out}: (x, sigma{', labels' if run.model.shape.classes else ''}) of {run.name} for torch.export.load"
            )
        if target.suffix:
            raise CommandError(f"--out: expected a folder without an ending, got {out}")
        mark = run.model.meta.get("fingerprint")
        found = [
            json.loads(path.read_text(encoding="utf-8")) for path in root.glob(f"reports/*/metrics/{run.name}.json")
        ]
        records = [one for metrics in found for one in metrics["records"] if one["provenance"]["fingerprint"] == mark]
        source = module_file(SOURCE)
        assert source is not None
        export_pipeline(run, target, source, nfe=nfe, records=records)
    return f"{out}: {run.name} for diffusers, with {len(records)} measured values on its card"
