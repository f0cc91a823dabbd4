"""kill -9 at random moments, of the stage, a worker, Ray's own processes or DVC; nothing may be lost.

    python -m benchmarks.kills [--kills 50] [--seed 1] [--ways repro jobs workers sharded]

A tiny workload is trained without disturbance first. Then the same again and again, and whenever it is on its way, one
of its processes is killed and the whole is started anew. After every kill each tensor file must be readable, and
whenever all runs have ended, their files must be those of the undisturbed training, bit for bit.
"""

import argparse
import hashlib
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmarks.workspace import Workspace
from cmcore.edge.ray_session import NO_START

RUNS = ("edm", "ect", "ict")
PARAMS: dict[str, Any] = {
    "workload": "kills",
    "replicates": 1,
    "data": {"source": "digits"},
    "diffusion": {"sigma_max": 20.0},
    "net": {"kind": "mlp", "hidden": 32, "blocks": 1, "c_noise": "log"},
    "train": {
        "images": 40_000, "batch": 50, "lr": 1e-3, "log_images": 500, "checkpoint_seconds": 0.0, "snapshots": 4,
        "ema": {"ema": {"half_life": 2000.0}},
    },
    "conditional": False,
    "runs": {
        "edm": {"method": "edm", "init": "random", "teacher": "none"},
        "ect": {"method": "ect", "init": "edm", "teacher": "none"},
        "ict": {"method": "ict", "init": "random", "teacher": "none", "options": {"s0": 4, "s1": 16}},
    },
    "eval": {
        "samples": 64, "batch": 64, "teacher_steps": 3, "bootstrap": 2, "kid_subsets": 2, "kid_size": 16,
        "endpoints": 16, "snapshot_samples": 64, "reference": {"images": 1024, "width": 4, "features": 8},
    },
    "compute": {"backend": "ray", "threads": 1},
    "tracking": {"mlflow": False},
}  # fmt: skip
# How the runs are trained, and what changes in the parameters for it.
TARGETS = [f"train@{run}" for run in RUNS]
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "repro": (("dvc", "repro", *TARGETS), {}),
    "jobs": (("cmcore.commands", "repro", "--jobs", "2"), {}),
    "workers": (("dvc", "repro", "train@ict"), {"workers": 2}),
    "sharded": (("dvc", "repro", "train@ict"), {"workers": 2, "shard": True}),
    "inline": (("cmcore.commands", "repro", "--jobs", "1"), {"backend": "inline"}),
}
PATIENCE = 900.0  # seconds that one attempt may take, on a machine that has much else to do
LATE = 20  # attempts that may end by themselves, as Ray gives up a start that takes longer than half a minute
ENDING = 90.0  # seconds in which what was left alone must end


def is_worker(process: psutil.Process) -> bool:
    """A Ray process that runs our code. Idle ones, which Ray keeps in store, do not count."""
    title = process.cmdline()[0]
    return title.startswith("ray::") and "IDLE" not in title and not is_ray(process)


def is_ray(process: psutil.Process) -> bool:
    """One of Ray's own processes: the head's store, the scheduler of the node, its helpers."""
    own = ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent", "log_monitor", "monitor.py", "dashboard")
    words = " ".join(process.cmdline()[:3])
    return any(name in words for name in own)


def is_stage(process: psutil.Process) -> bool:
    """A process that DVC started, or the driver, which computes several stages."""
    words = process.cmdline()[:4]
    return "python" in process.name() and any(word.startswith(("stages", "cmcore.commands")) for word in words)


def is_dvc(process: psutil.Process) -> bool:
    """DVC itself."""
    return "dvc" in process.cmdline()[:4]


KINDS: dict[str, Callable[[psutil.Process], bool]] = {
    "stage": is_stage, "worker": is_worker, "Ray": is_ray, "DVC": is_dvc,
}  # fmt: skip


def family(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it that are still there."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def find(processes: list[psutil.Process], kind: str) -> list[psutil.Process]:
    """Those of one kind."""
    found = []
    for process in processes:
        try:
            if KINDS[kind](process):
                found.append(process)
        except (psutil.Error, IndexError):  # it ended in the meantime
            continue
    return found


def unreadable(folder: Path) -> list[str]:
    """Tensor files that cannot be read; half-written ones have another name and do not count."""
    bad = []
    for path in [*(folder / ".work").rglob("*.safetensors"), *(folder / "outputs").rglob("*.safetensors")]:
        try:
            load_file(path)
        except (OSError, SafetensorError) as error:
            if path.exists():
                bad.append(f"{path}: {error}")
    return bad


def digests(folders: Iterable[Path], root: Path) -> dict[str, str]:
    """A digest of every file in some folders."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def trained(folder: Path) -> dict[str, str]:
    """The results of the runs that have ended, in their work folders."""
    return digests((folder / ".work").glob("*/*/final"), folder)


def recorded(folder: Path) -> dict[str, str]:
    """The results that DVC has, and what was measured of them."""
    places = [(folder / "outputs").glob("*/runs/[!.]*"), (folder / "reports").glob("*/metrics")]
    return digests(itertools.chain(*places), folder)


def position(folder: Path) -> int:
    """Lines of history written so far: moves on as training does."""
    while True:
        # Folders come and go while a run is on its way.
        with suppress(FileNotFoundError):
            return sum(path.read_bytes().count(b"\n") for path in (folder / ".work").rglob("history.jsonl"))


class Killer:
    """One way of training in one workspace, and the kills in it.

    Args:
        folder: where the workspace goes.
        way: a key of WAYS.
        seed: of the moments and of the choice of victims.
        params: the parameter file.
    """

    def __init__(self, folder: Path, way: str, seed: int, params: Mapping[str, Any] = PARAMS) -> None:
        self.command, compute = WAYS[way]
        self.space = Workspace(folder / way / "project", {**params, "compute": {**params["compute"], **compute}})
        self.clean = folder / way / "clean"  # as it was before any training
        self.random = random.Random(f"{way} {seed}")
        self.killed: Counter[str] = Counter()
        self.last = ""
        self.expected: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.finished = self.late = 0
        self.window = 1.0

    def prepare(self) -> None:
        """Train without disturbance, and keep what came of it."""
        self._run("dvc", "repro", "prepare")
        shutil.copytree(self.space.folder, self.clean, symlinks=True)
        start = time.monotonic()
        self._run(*self.command)
        self.window = time.monotonic() - start
        self.expected, self.outputs = trained(self.space.folder), recorded(self.space.folder)
        if not self.expected:
            raise RuntimeError(f"{' '.join(self.command)} left no results")
        self._start_over()

    def _run(self, *command: str) -> None:
        """Run a command to its end."""
        while (code := self.space.start(*command).wait(PATIENCE)) and self._was_late():
            pass
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{self._log()}")

    def _log(self) -> str:
        return self.space.folder.with_name("log.txt").read_text(encoding="utf-8", errors="replace")[-3000:]

    def _was_late(self) -> bool:
        """Whether an attempt ended by itself because the machine had too much to do for a Ray to start."""
        self.late += NO_START in self._log()
        return NO_START in self._log() and self.late <= LATE

    def kill_once(self) -> None:
        """Start, kill one process at a random moment, check the files; start again where all ended before the kill."""
        while True:
            before = position(self.space.folder)
            process = self.space.start(*self.command)
            # Half of the moments are anywhere, half of them while the training moves.
            aim = before + self.random.randint(1, 40) if self.random.random() < 0.5 else None
            moment = time.monotonic() + self.random.uniform(0.0, self.window)
            while process.poll() is None and not self._is_time(moment, aim):
                time.sleep(0.05)
            processes = family(psutil.Process(process.pid)) if process.poll() is None else []
            kinds = [kind for kind in KINDS if find(processes, kind)]
            if not kinds:
                self._ended(process.wait())
                continue
            kind = min(kinds, key=lambda kind: (self.killed[kind], self.random.random()))
            victim = self.random.choice(find(processes, kind))
            self.last = f"{kind} {victim.name()} after {position(self.space.folder) - before} lines"
            victim.kill()
            self.killed[kind] += 1
            self._let_end(process, processes)
            self._check()
            return

    def _is_time(self, moment: float, aim: int | None) -> bool:
        return time.monotonic() >= moment if aim is None else position(self.space.folder) >= aim

    def _let_end(self, process: Any, processes: list[psutil.Process]) -> None:
        """All that runs our code must end by itself: nothing may write on while a new attempt begins."""
        process.wait(PATIENCE)
        ours = [one for kind in ("stage", "worker", "DVC") for one in find(processes, kind)]
        _, alive = psutil.wait_procs(ours, timeout=ENDING)
        if alive:
            raise RuntimeError(f"still running after a kill of {self.last}: {', '.join(map(str, alive))}")
        # Ray's own helpers notice only after a while that it is gone. They write nothing of ours.
        for helper in processes:
            with suppress(psutil.NoSuchProcess):
                helper.kill()

    def _check(self) -> None:
        if bad := unreadable(self.space.folder):
            raise RuntimeError(f"unreadable after a kill of {self.last}: {'; '.join(bad)}")
        for name, digest in trained(self.space.folder).items():
            if self.expected[name] != digest:
                raise RuntimeError(f"after a kill of {self.last}, {name} differs from the undisturbed training")

    def finish(self) -> None:
        """Let it come to its end at last."""
        before = self.finished
        while self.finished == before:
            self._ended(self.space.start(*self.command).wait(PATIENCE))

    def _ended(self, code: int) -> None:
        if code:
            if self._was_late():
                return
            raise RuntimeError(f"{' '.join(self.command)} ended with {code}:\n{self._log()}")
        if (trained(self.space.folder), recorded(self.space.folder)) != (self.expected, self.outputs):
            raise RuntimeError("the results differ from those of the undisturbed training")
        self.finished += 1
        self._start_over()

    def _start_over(self) -> None:
        shutil.rmtree(self.space.folder)
        shutil.copytree(self.clean, self.space.folder, symlinks=True)


def survive(kills: int, seed: int, ways: list[str], folder: Path, params: Mapping[str, Any] = PARAMS) -> Counter[str]:
    """Share the kills among the ways of training and return how many of each kind there were.

    A RuntimeError says what was lost.
    """
    killed: Counter[str] = Counter()
    for place, way in enumerate(ways):
        killer, start = Killer(folder, way, seed, params), time.monotonic()
        killer.prepare()
        for _ in range(len(range(place, kills, len(ways)))):
            killer.kill_once()
        killer.finish()
        killed += killer.killed
        which = ", ".join(f"{count} {kind}" for kind, count in sorted(killer.killed.items()))
        print(f"{way}: {which}; {killer.finished} x the same bits, {time.monotonic() - start:.0f} s", flush=True)
    return killed


def main() -> int:
    """Kill, restart, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["repro", "jobs", "workers", "sharded"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    try:
        killed = survive(options.kills, options.seed, options.ways, folder)
    except RuntimeError as error:
        print(f"LOST: {error}\nleft for inspection: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    which = ", ".join(f"{kind} {count}" for kind, count in killed.most_common())
    print(f"kills survived: {sum(killed.values())} of {options.kills} ({which})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
