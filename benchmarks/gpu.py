"""Every speed target on one GPU within nine minutes, then training with what was measured.

    python -m benchmarks.gpu [--out FOLDER] [--seconds 540] [--data ARCHIVE] [--together N] [--parts ...] [--smoke]
    python -m benchmarks.gpu --train edm ect [--out FOLDER] [--seconds 540] [--data ARCHIVE]

The first form measures training steps of the methods, sampling, evaluation and the stages, and prints a table of the
targets; the second trains and evaluates runs of workloads/cifar10-jpeg-gpu.yaml, each call going on where the one
before was cut off. Both need a checkout and PyTorch with numpy, PyYAML, safetensors, pillow, psutil and threadpoolctl:
no Ray, MLflow, DVC or network. What is finished when the time is up is in FOLDER: rows.jsonl, targets.md, and the
stages' own reports. Each part is a process of its own, so that one that fails or hangs costs its own time alone.
Compiling takes most of the nine minutes and one core: parts compile side by side, as many as `--together` says, and
then measure one after the other, alone on the GPU. A part that compiles for more than half of the time is left out.

`--smoke` does the same with tiny networks on any device, within a minute: a test that all of it runs to its end.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
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
from cmcore.data.sources.pool import cores
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
    "precision": "bf16", "jvp_precision": "bf16", "channels_last": True, "compile": True, "cuda_graphs": True,
    "optimiser": "adam",
}  # fmt: skip
SMOKE = FAST | {"compile": False, "cuda_graphs": False}
STEPS = {  # network: batch and methods
    "teacher": (256, ("edm", "ect", "sct", "scd", "cd", "meanflow")), "ddpmpp": (128, ("edm", "ect", "sct")),
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # of a step of the teacher's network
    "RAdam": ("edm", {"optimiser": "radam"}),
    "kernels started one by one": ("edm", {"cuda_graphs": False}),
    "contiguous": ("edm", {"channels_last": False}),
    "eager": ("edm", {"compile": False, "cuda_graphs": False}),
    "eager, contiguous": ("edm", {"compile": False, "cuda_graphs": False, "channels_last": False}),
    "derivative in TF32": ("sct", {"jvp_precision": "tf32"}),
    "derivative in fp32": ("sct", {"jvp_precision": "fp32"}),
}
# Parts of a group measure in this order. A group begins when the one before has ended.
GROUPS = (
    ("prepare", *(f"step {net} {name}" for net, (_, names) in STEPS.items() for name in names), "samples"),
    ("train",), ("reference",), tuple(f"variant {said}" for said in VARIANTS),
)  # fmt: skip
PARTS = tuple(part for group in GROUPS for part in group)
# what, the most or the least it may be
TARGETS = (
    ("teacher: ECT over EDM", "most", 1.4), ("teacher: sCT over EDM", "most", 2.0),
    ("teacher: MeanFlow over EDM", "most", 2.0), ("teacher: sCD over EDM", "most", 2.4),
    ("teacher: CD over EDM", "most", 2.2),
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
READY = "ready to measure: waiting for a line"
PATIENCE = 0.55  # share of the time that parts may take until they are ready: the rest is for what they measure
NAMES = {"edm": "EDM", "ect": "ECT", "sct": "sCT", "scd": "sCD", "cd": "CD", "meanflow": "MeanFlow"}


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
        mine["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # of each part; by default as many as there are cores
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


def ready() -> None:
    """Say that everything is compiled, and wait until the device is free for what is measured."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of the passes so far: the parts that wait have to fit beside the one that measures
    print(READY, flush=True)
    sys.stdin.readline()


def step(place: Place, net: str, name: str, **train: Any) -> dict[str, Any]:
    """The training step of a method: its time, its memory, and its share of the matrix peak."""
    CLOCK.watch()
    torch.set_num_threads(1)  # other parts count, too
    case = place.case(net, **train)
    small = replace(case, batch=2, device=torch.device("cpu"), train={"precision": "fp32"})
    with Meter() as meter:  # a compiled step cannot be counted; operations are in proportion to the batch
        training(small, name)()
    flops = sum(meter.flops.values()) * case.batch / small.batch
    held = torch.cuda.memory_allocated() if place.device.type == "cuda" else 0
    job = training(case, name)
    for _ in range(3):
        job()
    if place.device.type == "cuda":
        torch.cuda.synchronize()
    ready()
    dtype = HALF[FAST["precision"]]
    rate = matrix_rate(place.clock, dtype, 16 if place.smoke else 1024)
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row = 1 if place.smoke else 10  # of steps, as training goes on to the next one without waiting for the device
    seconds = place.clock.least({name: lambda: [job() for _ in range(row)]}, 1 if place.smoke else 3)[name] / row
    peak = torch.cuda.max_memory_allocated() - held if place.device.type == "cuda" else 0
    place.rows.add("device", device=device_name(place.device), torch=torch.__version__, dtype=str(dtype), rate=rate)
    found = list(kernels(job, place.device))
    for kernel in found:
        place.rows.add("kernels", net=net, method=name, **train, **kernel)
    return {
        "method": name, "batch": case.batch, "ms": 1e3 * seconds, "in kernels, ms": sum(k["ms"] for k in found),
        "images/s": case.batch / seconds, "GFLOP": flops / 1e9, "share": flops / rate / seconds, "MiB": peak / 2**20,
        "compiling, s": CLOCK.seconds,
    }  # fmt: skip


def kernels(job: Callable[[], object], device: torch.device) -> Iterator[dict[str, Any]]:
    """What takes the time of a step: kernels on a GPU, operators on a CPU, the longest first."""
    gpu = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        job()
        if gpu:
            torch.cuda.synchronize()
    # The calls that start kernels are in the list, too, with their time on the host.
    events = [e for e in found.key_averages() if not gpu or e.device_type == torch.autograd.DeviceType.CUDA]
    timed = [((e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e3, e) for e in events]
    for ms, event in sorted(timed, key=lambda pair: -pair[0]):
        yield {"kernel": event.key[:160], "calls": event.count, "ms": ms}


def variant(place: Place, said: str) -> None:
    """A step of the teacher's network in other settings."""
    name, train = VARIANTS[said]
    place.rows.add("variants", settings=said, **step(place, "teacher", name, **train))


def against_edm(rows: Rows, net: str) -> list[dict[str, Any]]:
    """The steps of a network, with their time and memory over those of EDM."""
    found = rows.of(f"steps {net}")
    edm = next((row for row in found if row["method"] == "edm"), None)
    if edm is None:
        return found
    for row in found:
        row["over EDM"] = row["ms"] / edm["ms"]
        row["memory over EDM"] = row["MiB"] / edm["MiB"] if edm["MiB"] else 0.0
    return found


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
    jobs: dict[str, dict[str, Callable[[], None]]] = {}
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

        jobs[said] = {"bare": bare, "whole": whole}
    for job in jobs["1 step"].values():
        job()
    ready()
    for said, both in jobs.items():
        best = place.clock.least(both, 1 if place.smoke else 3)
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
    """The stage train, with checkpoints, snapshots and previews, for about 45 seconds, against the bare step."""
    params = parameters(place)
    rate = next(row["images/s"] for row in place.rows.of("steps teacher") if row["method"] == "edm")
    if not place.smoke:
        images = max(100_000, int(45 * rate)) // 1000 * 1000
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


def do(place: Place, part: str) -> None:
    """A part, in this process."""
    kind, _, words = part.partition(" ")
    if kind == "step":
        net, name = words.split()
        place.rows.add(f"steps {net}", **step(place, net, name))
    elif kind == "variant":
        variant(place, words)
    else:
        {"prepare": prepare, "reference": reference, "train": train, "samples": samples}[part](place)


def targets(rows: Rows) -> Iterator[dict[str, Any]]:
    """The targets beside what was measured."""
    found: dict[str, float] = {}
    for net in STEPS:
        for row in against_edm(rows, net):
            found[f"{net}: {NAMES[row['method']]} over EDM"] = row.get("over EDM", 0.0)
            found[f"{net}: memory of {NAMES[row['method']]} over EDM"] = row.get("memory over EDM", 0.0)
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
    tables = {f"steps {net}": against_edm(place.rows, net) for net in STEPS}
    for part, rows in (tables | {name: place.rows.of(name) for name in ("variants", "samples")}).items():
        if rows:
            lines += ["", f"## {part}", "", markdown(rows)]
    lines += ["", "## Stages", "", *(str(row) for row in place.rows.of("stages"))]
    lines += ["", "## Left out", "", *(f"- {row['left']}: {row['why']}" for row in place.rows.of("left out"))]
    return "\n".join(lines) + "\n"


def command(place: Place, part: str) -> list[str]:
    """The command line of a part."""
    same = ["--out", str(place.out), "--data", str(place.data), *(["--smoke"] if place.smoke else [])]
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", *same, "--part", part]


def _until_ready(process: subprocess.Popen[str]) -> None:
    """Return when the process says that it is ready, or has ended."""
    assert process.stdout
    while process.stdout.readline() not in (f"{READY}\n", ""):
        pass


def measure(place: Place, seconds: float, together: int, groups: Sequence[Sequence[str]] = GROUPS) -> None:
    """Every part in a process of its own, until the time is up; the report is written after each."""
    end = time.monotonic() + seconds
    for group in groups:
        for first in range(0, len(group), together):
            for part, why in side_by_side(place, group[first : first + together], end, PATIENCE * seconds):
                if why:
                    place.rows.add("left out", left=part, why=why)
                (place.out / "targets.md").write_text(report(place), encoding="utf-8")
                print(f"{part}: {why or 'done'}, {end - time.monotonic():.0f} s left", flush=True)


def side_by_side(place: Place, parts: Sequence[str], end: float, patience: float) -> Iterator[tuple[str, str]]:
    """Start parts at once; let each measure when all are ready and those before it have ended.

    Args:
        place: where.
        parts: what.
        end: of all of it, by the monotonic clock.
        patience: seconds after which parts are stopped that are not ready. Stages are ready when they have ended.

    Yields:
        Every part as it ends, and why it did not succeed, or nothing.
    """
    left = end - time.monotonic()
    if left < 1:
        yield from ((part, "no time was left") for part in parts)
        return
    with ExitStack() as stack:
        log = stack.enter_context((place.out / "log.txt").open("ab"))
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command(place, part), cwd=ROOT, env=place.environment(), start_new_session=True, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )
            )
            for part in parts
        ]  # fmt: skip

        def stop(processes: Iterable[subprocess.Popen[str]]) -> None:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with what compiles for it, and the stages

        stack.callback(stop, running)
        clock = threading.Timer(left, stop, [running])
        clock.start()
        stack.callback(clock.cancel)
        pool = stack.enter_context(ThreadPoolExecutor(len(parts)))
        getting = [pool.submit(_until_ready, process) for process in running]
        late = wait(getting, min(left, patience)).not_done if len(parts) > 1 else set()
        stop(process for process, ready in zip(running, getting, strict=True) if ready in late)
        for part, process, ready in zip(parts, running, getting, strict=True):
            process.communicate("\n")
            why = f"ended with {process.returncode}, see log.txt"
            if ready in late:
                why = f"was not ready to measure after {patience:.0f} s"
            elif process.returncode == -signal.SIGKILL and time.monotonic() >= end - 1:
                why = "the time was up"
            yield part, why if process.returncode else ""


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
    parser.add_argument("--parts", nargs="+", default=[""], metavar="BEGINNING", help="those alone that begin so")
    parser.add_argument("--together", type=int, default=max(1, cores() - 4), help="parts that compile side by side")
    options = parser.parse_args(words)
    if not options.smoke and not options.data.is_file():
        parser.error(f"--data: expected the archive of workloads/{WORKLOAD.name}, got {options.data}")
    place = Place(options.out, options.data, options.smoke)
    if options.part:
        do(place, options.part)
    elif options.train:
        train_runs(place, options.seconds, options.train)
    else:
        groups = [[part for part in group if part.startswith(tuple(options.parts))] for group in GROUPS]
        measure(place, options.seconds, options.together, groups)
        print((place.out / "targets.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
