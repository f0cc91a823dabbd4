"""`cmlab export`: a model for use without this project."""

import json
from pathlib import Path
from typing import Literal

from cmcore.assemble.adapters import load_adapter, save_peft
from cmcore.assemble.export import export_onnx, export_pipeline, export_program
from cmcore.closure import module_file
from cmcore.commands.place import CommandError
from cmcore.commands.sample import opened, option_errors

Kind = Literal["diffusers", "onnx", "torch", "peft"]
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
SOURCE = "cmcore.edge.diffusers_pipeline"  # found, not imported: an export needs no diffusers


def export(what: str, root: Path, start: Path, *, to: Kind, out: Path, nfe: int, ema: str, method: str) -> str:
    """Write a program, a graph, the folder of an adapter, or one for diffusers with what was measured of the run."""
    target = start / out
    with option_errors():
        run = opened(what, root, start, ema=ema, device="cpu", method=method)
        if to in ENDINGS:
            if target.suffix != ENDINGS[to]:
                raise CommandError(f"--out: expected NAME{ENDINGS[to]}, got {out}")
            (export_onnx if to == "onnx" else export_program)(run, target, nfe=nfe)
            inputs = "noise" if nfe else "x, sigma"
            loader = "onnxruntime" if to == "onnx" else "torch.export.load"
            return f"{out}: ({inputs}{', labels' if run.model.shape.labelled else ''}) of {run.name} for {loader}"
        if target.suffix:
            raise CommandError(f"--out: expected a folder without an ending, got {out}")
        if to == "peft":
            if run.model.file is None:
                raise CommandError(f"--to: expected weights of this project for peft, got others of {run.name}")
            save_peft(load_adapter(run.model.file), target)
            return f"{out}: the adapter of {run.name} for peft"
        mark = run.model.meta.get("fingerprint")
        found = [
            json.loads(path.read_text(encoding="utf-8")) for path in root.glob(f"reports/*/metrics/{run.name}.json")
        ]
        records = [one for metrics in found for one in metrics["records"] if one["provenance"]["fingerprint"] == mark]
        source = module_file(SOURCE)
        assert source is not None
        why = export_pipeline(run, target, source, nfe=nfe, records=records)
    kind = f"a pipeline of its own ({why})" if why else "a ConsistencyModelPipeline"
    return f"{out}: {run.name} for diffusers as {kind}, with {len(records)} measured values on its card"
