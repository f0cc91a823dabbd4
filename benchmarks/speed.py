"""How fast training, sampling and evaluation are, and how near to what the machine's arithmetic allows.

    python -m benchmarks.speed [--net small] [--batch 32] [--device cpu] [--threads 1] [--precision fp32]
                               [--channels-last] [--compile] [--clock wall] [--repeats 5]
                               [--parts methods,growth] [--methods edm,ect] [--out FILE]

One run measures everything on the same network and batch, in turns, and takes the least of the repeats: the step of
every method over that of EDM and over its arithmetic floor, the matrix products of the network alone, samplers,
evaluation, and how the step grows with batch and resolution. Where others use the machine, `--clock cpu` counts the
seconds of the processor instead of those of the wall. Prints Markdown, and writes JSON where --out says.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import Clock, Job, matrix_rate
from benchmarks.speed_jobs import METHODS, NETS, Case, evaluation, products, samplers, training
from cmcore.budget.cost import Meter
from cmcore.train.precision import HALF
from cmcore.train.timing import device_name

PARTS = ("methods", "products", "samplers", "evaluation", "growth")
Rows = list[dict[str, Any]]


def counted(job: Job, device: torch.device) -> tuple[int, int]:
    """Operations of a job, and the most bytes beyond those that were there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with Meter() as meter:
        job()
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else meter.peak
    return sum(meter.flops.values()), peak


def methods(case: Case, clock: Clock, repeats: int, names: Sequence[str], rate: float) -> Rows:
    """The step of every method."""
    jobs = {name: training(case, name) for name in names}
    seconds = clock.least(jobs, repeats)
    rows: Rows = []
    for name, job in jobs.items():
        flops, peak = counted(job, case.device)
        rows.append(
            {
                "method": name,
                "ms": 1e3 * seconds[name],
                "over EDM": seconds[name] / seconds["edm"],
                "images/s": case.batch / seconds[name],
                "GFLOP": flops / 1e9,
                "over floor": seconds[name] / (flops / rate),
                "peak MiB": peak / 2**20,
            }
        )
    return rows


def alone(case: Case, clock: Clock, repeats: int) -> Rows:
    """An EDM step against its matrix products with nothing between them."""
    seconds = clock.least({"step": training(case, "edm"), "products": products(case)}, repeats)
    share = seconds["products"] / seconds["step"]
    return [{"EDM step, ms": 1e3 * seconds["step"], "products alone, ms": 1e3 * seconds["products"], "share": share}]


def sampled(case: Case, clock: Clock, repeats: int) -> Rows:
    """Images a second of every sampler."""
    seconds = clock.least(samplers(case), repeats)
    return [{"sampler": name, "images/s": case.batch / s} for name, s in seconds.items()]


def evaluated(case: Case, clock: Clock, repeats: int, count: int = 4) -> Rows:
    """Images a second of the evaluation's pass over its images, and of the extractor alone."""
    seconds = clock.least(evaluation(case, count), repeats)
    images = count * case.batch
    each = {f"{name}, images/s": images / s for name, s in seconds.items()}
    return [{**each, "pass over bare": seconds["pass"] / seconds["bare"]}]


def growth(case: Case, clock: Clock, repeats: int) -> Rows:
    """An EDM step at other batches and resolutions."""
    own = case.shape[1]
    sizes = [(case.batch // 2, own), (case.batch, own), (2 * case.batch, own)]
    if NETS[case.net]["kind"] != "mlp":  # whose weights grow with the resolution
        sizes += [(case.batch, own // 2), (max(1, case.batch // 4), 2 * own)]
    cases = {(b, r): Case(case.net, b, case.device, case.train, r) for b, r in sizes if b}
    seconds = clock.least({f"{b} {r}": training(one, "edm") for (b, r), one in cases.items()}, repeats)
    return [
        {"batch": b, "resolution": r, "ms": 1e3 * seconds[f"{b} {r}"], "us/pixel": 1e6 * seconds[f"{b} {r}"] / b / r**2}
        for b, r in cases
    ]


def shown(value: Any) -> str:
    """A number to three digits, or as many as it has before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(rows: Rows) -> str:
    """A table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads)]
    lines += [[shown(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All tables, and on what they were taken."""
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    train = {
        "precision": arguments.precision, "channels_last": arguments.channels_last, "compile": arguments.compile,
        "optimiser": "adam",
    }  # fmt: skip
    case, clock = Case(arguments.net, arguments.batch, device, train), Clock(arguments.clock, device)
    rate = matrix_rate(clock, HALF.get(arguments.precision, torch.float32))
    tables: dict[str, Rows] = {}
    if "methods" in arguments.parts:
        tables["training step of every method"] = methods(case, clock, arguments.repeats, arguments.methods, rate)
    for part, table, title in (
        ("products", alone, "the same matrix products alone"),
        ("samplers", sampled, "samplers"),
        ("evaluation", evaluated, "evaluation"),
        ("growth", growth, "growth of the EDM step"),
    ):
        if part in arguments.parts:
            tables[title] = table(case, clock, arguments.repeats)
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "matrix rate, GFLOP/s": rate / 1e9,
        **{key: value for key, value in vars(arguments).items() if key not in ("out", "parts", "methods", "device")},
        "tables": tables,
    }


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""

    def names(among: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            chosen = text.split(",")
            if not set(chosen) <= set(among):
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(among)}, got {text}")
            return chosen

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS))
    parser.add_argument("--methods", type=names(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    if "edm" not in arguments.methods:
        arguments.methods.insert(0, "edm")
    return arguments


def main() -> None:
    """Measure, print and write."""
    arguments = parsed()
    found = measure(arguments)
    print(", ".join(f"{key} {value}" for key, value in found.items() if key != "tables"))
    for title, rows in found["tables"].items():
        print(f"\n{title}\n\n{markdown(rows)}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
