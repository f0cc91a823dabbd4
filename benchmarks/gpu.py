"""Every speed target on one GPU within nine minutes, then training with what was measured.

    python -m benchmarks.gpu [--out FOLDER] [--seconds 540] [--data ARCHIVE] [--smoke]
    python -m benchmarks.gpu --train edm ect [--out FOLDER] [--seconds 540] [--data ARCHIVE]

The first form measures training steps of the methods, sampling, evaluation and the stages, and prints a table of the
targets; the second trains and evaluates runs of workloads/cifar10-jpeg-gpu.yaml, each call going on where the one
before was cut off. Both need a checkout and PyTorch with numpy, PyYAML, safetensors, pillow, psutil and threadpoolctl:
no Ray, MLflow, DVC or network. What is finished when the time is up is in FOLDER: rows.jsonl, targets.md, and the
stages' own reports. Each part is a process of its own, so that one that fails or hangs costs its own time alone.

`--smoke` does the same with tiny networks on any device, within a minute: a test that all of it runs to its end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.clock import Clock, matrix_rate
from benchmarks.speed import markdown
from benchmarks.speed_jobs import NETS, Case, training
from cmcore.assemble.inference import for_samples
from cmcore.budget.cost import Meter
from cmcore.closure import ROOT
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.edge.compile_cache import VARIABLE
from cmcore.evaluate.collect import collect
from cmcore.evaluate.features import random_extractor
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun
from cmcore.sample.stream import generate
from cmcore.train.compiled import CLOCK
from cmcore.train.precision import HALF
from cmcore.train.timing import device_name

WORKLOAD = ROOT / "workloads" / "cifar10-jpeg-gpu.yaml"
FAST: dict[str, Any] = {
    "precision": "bf16", "jvp_precision": "bf16", "channels_last": True, "compile": True, "optimiser": "adam",
}  # fmt: skip
SMOKE = FAST | {"compile": False}
# network: batch, methods in the order of their weight
STEPS = {"teacher": (256, ("edm", "ect", "sct", "scd", "cd")), "ddpmpp": (128, ("edm", "ect", "sct"))}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # of a step of the teacher's network
    "RAdam": ("edm", {"optimiser": "radam"}),
    "CUDA graphs": ("edm", {"cuda_graphs": True}),
    "contiguous": ("edm", {"channels_last": False}),
    "eager": ("edm", {"compile": False}),
    "eager, contiguous": ("edm", {"compile": False, "channels_last": False}),
    "derivative in TF32": ("sct", {"jvp_precision": "tf32"}),
    "derivative in fp32": ("sct", {"jvp_precision": "fp32"}),
}
PARTS = ("prepare", "steps teacher", "reference", "train", "samples", "steps ddpmpp", "variants")
# what, the most or the least it may be
TARGETS = (
    ("teacher: ECT over EDM", "most", 1.4), ("teacher: sCT over EDM", "most", 2.0),
    ("teacher: sCD over EDM", "most", 2.4), ("teacher: CD over EDM", "most", 2.2),
    ("ddpmpp: ECT over EDM", "most", 1.4), ("ddpmpp: sCT over EDM", "most", 2.0),
    ("ddpmpp: share of the matrix peak", "least", 0.45), ("teacher: share of the matrix peak", "least", 0.30),
    ("teacher: memory of sCT over EDM", "most", 1.6), ("ddpmpp: memory of sCT over EDM", "most", 1.6),
    ("images/s of the stage train over the bare step", "least", 0.95),
    ("images/s of evaluation over the bare sampler", "least", 0.9), ("reference of 50,000 images, s", "most", 60.0),
)  # fmt: skip
NETS["teacher"] = {
    "kind": "unet", "shape": (3, 32), "model_channels": 64, "channel_mult": (2, 2, 2), "blocks": 2,
    "attention_resolutions": (16,), "dropout": 0.0,
}  # fmt: skip
TINY = {"kind": "unet", "shape": (3, 16), "model_channels": 8, "channel_mult": (1, 2), "blocks": 1,
        "attention_resolutions": (8,), "dropout": 0.0}  # fmt: skip
NAMES = {"edm": "EDM", "ect": "ECT", "sct": "sCT", "scd": "sCD", "cd": "CD"}


class Rows:
    """Rows of measurements in a file, each there as soon as it is known."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"

    def add(self, part: str, **values: Any) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, **values}) + "\n")

    def of(self, part: str) -> list[dict[str, Any]]:
        """The rows of a part, without its name."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [{key: value for key, value in row.items() if key != "part"} for row in rows if row["part"] == part]


class Place:
    """Where a benchmark works, and what it does there: the arguments of all parts."""

    def __init__(self, out: Path, data: Path, smoke: bool) -> None:
        self.out, self.data, self.smoke = out.resolve(), data.resolve(), smoke
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rows, self.clock = Rows(self.out), Clock("wall", self.device)
        self.work = self.out / "project"
        if smoke:
            NETS.update(teacher=TINY, ddpmpp=TINY)

    def case(self, net: str, **train: Any) -> Case:
        """A network at its batch."""
        return Case(net, 4 if self.smoke else STEPS[net][0], self.device, {**(SMOKE if self.smoke else FAST), **train})

    def environment(self) -> dict[str, str]:
        """Of every process: what one compiles the next one finds."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        mine = {VARIABLE: str(self.out / "compiled"), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **mine}

    def stage(self, *words: str, left: float | None = None) -> float:
        """Run a stage in the project folder; the seconds that it took. What it says is in the log beside."""
        start = time.monotonic()
        with (self.out / "log.txt").open("ab") as log:
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "stages", *words], cwd=self.work, env=self.environment(),
                check=True, stdout=log, stderr=log, timeout=left,
            )  # fmt: skip
        return time.monotonic() - start


def steps(place: Place, net: str) -> None:
    """The step of every method, compiled: against EDM's, against the matrix peak, and its memory."""
    repeats = 1 if place.smoke else 20
    dtype = HALF[FAST["precision"]]
    rate = matrix_rate(place.clock, dtype, 16 if place.smoke else 1024)
    place.rows.add("device", device=device_name(place.device), torch=torch.__version__, dtype=str(dtype), rate=rate)
    edm = None
    for name in STEPS[net][1]:
        row = _step(place, place.case(net), name, rate, repeats)
        edm = edm or row
        row["over EDM"] = row["ms"] / edm["ms"]
        row["memory over EDM"] = row["MiB"] / edm["MiB"] if edm["MiB"] else 0.0
        place.rows.add(f"steps {net}", **row)


def _step(place: Place, case: Case, name: str, rate: float, repeats: int) -> dict[str, Any]:
    CLOCK.watch()
    before = CLOCK.seconds
    small = replace(case, batch=4, device=torch.device("cpu"), train={"precision": "fp32"})
    with Meter() as meter:  # a compiled step cannot be counted; operations are in proportion to the batch
        training(small, name)()
    flops = sum(meter.flops.values()) * case.batch / 4
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if place.device.type == "cuda" else 0
    job = training(case, name)
    for _ in range(3):
        job()
    seconds = place.clock.least({name: job}, repeats)[name]
    peak = torch.cuda.max_memory_allocated() - held if place.device.type == "cuda" else 0
    return {
        "method": name, "batch": case.batch, "ms": 1e3 * seconds, "images/s": case.batch / seconds,
        "GFLOP": flops / 1e9, "share": flops / rate / seconds, "MiB": peak / 2**20,
        "compiling, s": CLOCK.seconds - before,
    }  # fmt: skip


def variants(place: Place) -> None:
    """Steps in other settings."""
    rate = matrix_rate(place.clock, HALF[FAST["precision"]], 16 if place.smoke else 1024)
    for said, (name, train) in VARIANTS.items():
        if place.device.type == "cpu" and train.get("cuda_graphs"):
            continue
        row = _step(place, place.case("teacher", **train), name, rate, 1 if place.smoke else 10)
        place.rows.add("variants", settings=said, **row)


def samples(place: Place) -> None:
    """Samplers alone, from noise to images, and as the evaluation runs them, with features and moments."""
    case = place.case("teacher")
    batch, count, d = (4, 2, DiffusionConfig()) if place.smoke else (1000, 4, DiffusionConfig())
    denoiser = for_samples(case.denoiser().eval(), case.config, place.device)
    channels, resolution, _ = case.shape
    extractor = random_extractor(channels, resolution, width=32, features=64).to(place.device)
    ways = {
        "1 step": Multistep((d.sigma_max,), d.sigma_min),
        "Heun, NFE 35": Heun(with_zero(karras_grid(18, d.sigma_min, d.sigma_max, d.rho))),
    }
    for said, way in ways.items():
        noise = [NoiseSource(1, range(at, at + batch), place.device) for at in range(0, count * batch, batch)]
        state = [way.sigma_max * source.normal(case.shape) for source in noise]

        def bare(way: Any = way, state: Any = state, noise: Any = noise) -> None:
            with torch.no_grad():
                for x, source in zip(state, noise, strict=True):
                    way.from_noise(denoiser, x, source)

        def whole(way: Any = way) -> None:
            with torch.no_grad():
                made = generate(
                    way, denoiser, case.shape, range(count * batch), seed=1, batch=batch, device=place.device
                )
                collect(made, [extractor], shard=count * batch, keep=count * batch, device=place.device)

        best = place.clock.least({"bare": bare, "whole": whole}, 1 if place.smoke else 3)
        place.rows.add(
            "samples", sampler=said, **{f"{key}, images/s": count * batch / s for key, s in best.items()},
            share=best["bare"] / best["whole"],
        )  # fmt: skip


def parameters(place: Place) -> dict[str, Any]:
    """Of the project in which stages are timed."""
    params = yaml.safe_load(WORKLOAD.read_text(encoding="utf-8"))
    params["data"]["path"] = str(place.data)
    if place.smoke:
        params["data"] = {"source": "array", "path": "images.npy", "resolution": 16, "channels": 3}
        params["net"] = {key: list(v) if isinstance(v, tuple) else v for key, v in TINY.items() if key != "shape"}
        params["train"] |= {
            "images": 16, "batch": 4, "compile": False, "lr_decay": "constant", "lr_ref_images": 0, "log_images": 8,
        }  # fmt: skip
        params["runs"] = {
            name: {**{k: v for k, v in run.items() if k not in ("train", "options")}, "train": {"images": 16}}
            for name, run in params["runs"].items() if name in ("edm", "ect")
        }  # fmt: skip
        params["eval"] |= {
            "samples": 8, "batch": 4, "teacher_steps": 2, "kid_size": 4, "kid_subsets": 2, "endpoints": 4, "scan": [],
            "snapshot_samples": 8, "score_splits": 2, "bootstrap": 2, "neighbours": 1,
            "reference": {"width": 4, "images": 32, "batch": 8},
        }  # fmt: skip
    return params


def project(place: Place, params: dict[str, Any]) -> None:
    """The folder of the project, with these parameters."""
    place.work.mkdir(exist_ok=True)
    (place.work / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    if place.smoke:
        import numpy as np

        images = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
        np.save(place.work / "images.npy", images)


def prepare(place: Place) -> None:
    """The stage prepare."""
    project(place, parameters(place))
    place.rows.add("stages", stage="prepare", seconds=place.stage("prepare"))


def reference(place: Place) -> None:
    """The stage reference."""
    place.rows.add("stages", stage="reference", seconds=place.stage("reference"))


def train(place: Place) -> None:
    """The stage train, with checkpoints, snapshots and previews, for about a minute, against the bare step."""
    params = parameters(place)
    rate = place.rows.of("steps teacher")[0]["images/s"]
    if not place.smoke:
        images = max(100_000, int(60 * rate)) // 1000 * 1000
        params["runs"] = {"edm": params["runs"]["edm"]}
        params["runs"]["edm"]["train"] |= {
            "images": images,
            "lr_ramp_images": images // 10,
            "lr_ref_images": images // 2,
        }
        params["train"] |= {"checkpoint_seconds": 15.0}
    project(place, params)
    place.stage("train", "edm")
    took = json.loads((place.work / "outputs" / params["workload"] / "times" / "edm.json").read_text(encoding="utf-8"))
    images = params["runs"]["edm"]["train"]["images"]
    alone = took["seconds"] - took["compile_seconds"]
    place.rows.add(
        "stages", stage="train", images=images, seconds=took["seconds"], compiling=took["compile_seconds"],
        **{"images/s": images / alone, "over bare": images / alone / rate},
    )  # fmt: skip


def jobs(place: Place) -> dict[str, Callable[[], None]]:
    """The parts by name."""
    alone = {"prepare": prepare, "reference": reference, "train": train, "samples": samples, "variants": variants}
    return {
        part: partial(steps, place, part.split()[1]) if part.startswith("steps") else partial(alone[part], place)
        for part in PARTS
    }


def targets(rows: Rows) -> Iterator[dict[str, Any]]:
    """The targets beside what was measured."""
    found: dict[str, float] = {}
    for net in STEPS:
        for row in rows.of(f"steps {net}"):
            found[f"{net}: {NAMES[row['method']]} over EDM"] = row["over EDM"]
            found[f"{net}: memory of {NAMES[row['method']]} over EDM"] = row["memory over EDM"]
            if row["method"] == "edm":
                found[f"{net}: share of the matrix peak"] = row["share"]
    for row in rows.of("stages"):
        if row["stage"] == "train":
            found["images/s of the stage train over the bare step"] = row["over bare"]
        elif row["stage"] == "reference":
            found["reference of 50,000 images, s"] = row["seconds"]
    shares = [row["share"] for row in rows.of("samples")]
    if shares:
        found["images/s of evaluation over the bare sampler"] = min(shares)
    for name, kind, bound in TARGETS:
        value = found.get(name)
        met = "not measured" if not value else ("yes" if (value <= bound) == (kind == "most") else "no")
        yield {"target": name, kind: bound, "measured": value or "-", "met": met}


def report(place: Place) -> str:
    """All tables."""
    lines = ["# A smoke run, which measures nothing" if place.smoke else "# Speed on one GPU", ""]
    lines += [", ".join(f"{key} {value}" for key, value in row.items()) for row in place.rows.of("device")[:1]]
    shown = [{"target": r["target"], "bound": f"at {k} {r[k]:g}", **{x: r[x] for x in ("measured", "met")}}
             for r in targets(place.rows) for k in ("most", "least") if k in r]  # fmt: skip
    lines += ["", "## Targets", "", markdown(shown)]
    for part in ("steps teacher", "steps ddpmpp", "variants", "samples"):
        if rows := place.rows.of(part):
            lines += ["", f"## {part}", "", markdown(rows)]
    lines += ["", "## Stages", "", *(str(row) for row in place.rows.of("stages"))]
    lines += ["", "## Left out", "", *(f"- {row['left']}: {row['why']}" for row in place.rows.of("left out"))]
    return "\n".join(lines) + "\n"


def measure(place: Place, seconds: float, parts: Sequence[str]) -> None:
    """Every part in a process of its own, until the time is up; the report is written after each."""
    end = time.monotonic() + seconds
    same = ["--out", str(place.out), "--data", str(place.data), *(["--smoke"] if place.smoke else [])]
    for part in parts:
        left, why = end - time.monotonic(), ""
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", part, *same]
        if left < 1:
            why = "no time was left"
        else:
            with (place.out / "log.txt").open("ab") as log:
                try:
                    subprocess.run(
                        command, cwd=ROOT, env=place.environment(), check=True, stdout=log, stderr=log, timeout=left
                    )
                except subprocess.CalledProcessError as error:
                    why = f"ended with {error.returncode}, see log.txt"
                except subprocess.TimeoutExpired:
                    why = "the time was up"
        if why:
            place.rows.add("left out", left=part, why=why)
        (place.out / "targets.md").write_text(report(place), encoding="utf-8")
        print(f"{part}: {why or 'done'}, {end - time.monotonic():.0f} s left", flush=True)


def train_runs(place: Place, seconds: float, names: Sequence[str]) -> None:
    """Train and evaluate runs until the time is up; the next call goes on."""
    end = time.monotonic() + seconds
    project(place, parameters(place))
    words = [("prepare",), ("reference",), *(("train", name) for name in names)]
    words += [("evaluate", name) for name in names]
    name = parameters(place)["workload"]
    for stage in words:
        made = {"prepare": "data/manifest.json", "reference": "reference/reference.json"}.get(stage[0])
        if made and (place.work / "outputs" / name / made).exists():
            continue
        try:
            took = place.stage(*stage, left=end - time.monotonic())
        except subprocess.TimeoutExpired:
            print(f"{' '.join(stage)}: the time was up; the next call goes on", flush=True)
            return
        print(f"{' '.join(stage)}: {took:.0f} s", flush=True)
    for source in (place.work / "reports", place.work / "outputs" / name / "times"):
        shutil.copytree(source, place.out / source.name, dirs_exist_ok=True)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, or train."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10-jpeg.tar.xz")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--train", nargs="+", metavar="RUN")
    parser.add_argument("--part", choices=PARTS, help="one part alone, in this process")
    options = parser.parse_args(words)
    if not options.smoke and not options.data.is_file():
        parser.error(f"--data: expected the archive of workloads/{WORKLOAD.name}, got {options.data}")
    place = Place(options.out, options.data, options.smoke)
    if options.part:
        jobs(place)[options.part]()
    elif options.train:
        train_runs(place, options.seconds, options.train)
    else:
        measure(place, options.seconds, PARTS)
        print((place.out / "targets.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
