"""What DVC, Ray and MLflow cost, and what they give, on a scaled graph of a workload.

    python -m benchmarks.overhead [--workload digits] [--scale 0.25] [--threads 1] [--kills 50] [--tune NAME]

The same stages run in a copy of the project: in one bare process that calls them one after the other, without DVC,
Ray and MLflow; as `cmlab repro -j 1`, with as many threads; as `cmlab repro -j 2`; and both again on a cluster of two
nodes. Training is scaled, so the seconds that stages cost weigh more than in the whole graph; the table gives them as
seconds as well. On a machine that others use, too, the processor time says more than the clock.
"""

import argparse
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.kills import WAYS, digests, survive
from benchmarks.workspace import Cost, Workspace
from cmcore.assemble.project import RANDOM
from cmcore.closure import ROOT
from cmcore.config import load_yaml, merge

BARE = '''"""All stages in this one process, in the order of the pipeline."""
import importlib
import sys

for stage in sys.argv[1:]:
    kind, _, run = stage.partition("@")
    importlib.import_module(f"stages.{kind}").main(*filter(None, [run]))
'''
ONLY_CORE = {"compute": {"backend": "inline"}, "tracking": {"mlflow": False}}


def scaled(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The parameters with every training shortened."""

    def shorter(train: Mapping[str, Any]) -> dict[str, Any]:
        images = {"images": round(train["images"] * scale)} if "images" in train else {}
        ramps = {name: round(train[name] * scale) for name in ("lr_ramp_images", "lr_ref_images") if name in train}
        return {**train, **images, **ramps}

    runs = {
        name: {**run, **({"train": shorter(run["train"])} if "train" in run else {})}
        for name, run in params["runs"].items()
    }
    tune = {name: shorter(search) for name, search in params.get("tune", {}).items()}
    return {**params, "train": shorter(params["train"]), "runs": runs, "tune": tune}


def order(params: Mapping[str, Any]) -> list[str]:
    """The stages, in an order in which they can run."""
    waiting, runs = dict(params["runs"]), list[str]()
    while waiting:
        ready = [name for name, run in waiting.items() if not {run["init"], run["teacher"]} & waiting.keys()]
        runs += ready
        for name in ready:
            del waiting[name]
    trained = [f"train@{name}" for name in runs]
    return ["prepare", "reference", *trained, *(f"evaluate@{name}" for name in runs), "edit", "tabulate"]


def results(space: Workspace) -> dict[str, str]:
    """What must be the same in every way of running: weights, histories and every measured number."""
    root = space.folder
    return digests([*(root / "outputs").glob("*/runs/*"), *(root / "reports").glob("*/metrics")], root)


@contextmanager
def two_nodes(space: Workspace, threads: int) -> Iterator[None]:
    """A Ray cluster of two nodes on this machine, each with room for one job, that the workspace uses in the block."""
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= access
    from ray.cluster_utils import Cluster

    node = {"num_cpus": threads, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        space.variables = {"RAY_ADDRESS": str(cluster.address), **access}
        yield
    finally:
        space.variables = {}
        cluster.shutdown()


def pipeline_rows(space: Workspace, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Measure the ways of running everything, a row at a time; a RuntimeError says that their results differ."""
    stages = order(params)
    (space.folder / "bare.py").write_text(BARE, encoding="utf-8")
    space.write(merge(params, ONLY_CORE))
    bare, expected = space.call("bare", *stages), results(space)
    yield f"bare core, {len(stages)} stages in one process", shown(bare)

    def same(way: str) -> None:
        if results(space) != expected:
            raise RuntimeError(f"{way} gave other results than the bare core")

    space.forget()
    space.write(params)
    full = space.call("cmcore.commands", "repro", "--jobs", "1")
    same("cmlab repro")
    yield "cmlab repro -j 1: DVC + Ray + MLflow", shown(full)
    yield "overhead by the clock", overhead(bare.wall, full.wall, len(stages))
    yield "overhead in processor time", overhead(bare.cpu, full.cpu, len(stages))
    yield "dvc repro with nothing changed", shown(min(space.call("dvc", "repro") for _ in range(3)))
    space.forget()
    two = space.call("cmcore.commands", "repro", "--jobs", "2")
    same("cmlab repro -j 2")
    yield "cmlab repro -j 2", f"{shown(two)}, saves {1 - two.wall / full.wall:.0%}"
    with two_nodes(space, params["compute"]["threads"]):
        spread = []
        for jobs in ("1", "2"):
            space.forget()
            spread.append(space.call("cmcore.commands", "repro", "--jobs", jobs).wall)
            same(f"cmlab repro -j {jobs} on two nodes")
    yield "cmlab repro -j 1 on a cluster of two nodes", f"{spread[0]:.1f} s"
    yield "cmlab repro -j 2 on it", f"{spread[1]:.1f} s, saves {1 - spread[1] / spread[0]:.0%}"
    yield "results of all these", "the same bits"


def shown(cost: Cost) -> str:
    """A cost in words."""
    return f"{cost.wall:.1f} s, {cost.cpu:.1f} s of processor time"


def overhead(bare: float, full: float, stages: int) -> str:
    """What the full pipeline costs above the bare core."""
    extra = full - bare
    return f"{extra:.1f} s, {extra / bare:.1%}, {extra / stages:.2f} s a stage"


def tune_row(space: Workspace, params: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Trials a minute of a search of the workload."""
    init = params["tune"][name]["init"]
    space.call("dvc", "repro", "reference", "prepare" if init == RANDOM else f"train@{init}")
    seconds = space.call("dvc", "repro", f"searches/dvc.yaml:tune@{name}").wall
    trials = json.loads((space.folder / f"reports/{params['workload']}/tune/{name}/trials.json").read_text())["trials"]
    return f"trials of {name}", f"{len(trials)} in {seconds:.0f} s, {60 * len(trials) / seconds:.1f} a minute"


def print_row(what: str, value: str) -> None:
    """Print a row of the table as soon as it is known."""
    print(f"| {what} | {value} |", flush=True)


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--scale", type=float, default=0.25, help="of the images that every run sees")
    parser.add_argument(
        "--threads", type=int, default=1, help="of every job, the bare core's too; two jobs run at once"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--tune", default="", help="a search of the workload to be timed")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench"))
    params = scaled(load_yaml(ROOT / "workloads" / f"{options.workload}.yaml"), options.scale)
    params["compute"] = {**params.get("compute", {}), "threads": options.threads}
    space = Workspace(folder / "space" / "project", params)
    print(f"| {options.workload} with {options.scale:g} x the images | |\n| --- | --- |", flush=True)
    try:
        for row in pipeline_rows(space, params):
            print_row(*row)
        if options.tune:
            print_row(*tune_row(space, params, options.tune))
        if options.kills:
            killed = survive(options.kills, 1, list(WAYS), folder / "kills")
            print_row("kills survived", f"{sum(killed.values())} of {options.kills}")
    except RuntimeError as error:
        print(f"{error}\nleft for inspection: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
