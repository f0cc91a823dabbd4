"""Kills, full disks, flipped bits, hostile files and wrong parameters; nothing may be lost, wrong or without a line.

    python -m benchmarks.faults [--kills 60] [--full 20] [--flips 50] [--hostile] [--mutations 2500] [--seed 1]

Each part prints how many it survived; 0 leaves a part out. A tiny workload is made once without disturbance. After
every kill, full disk and flipped bit `cmlab repro` has to go on by itself, to the same bits.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills import PARAMS, PATIENCE, Killer, recorded
from cmcore.closure import ROOT

COMMAND = ("cmcore.commands", "repro", "--jobs", "1")
KINDS = (
    "outputs/*/runs/*/weights.safetensors", "outputs/*/runs/*/history.jsonl", "outputs/*/runs/*/summary.json",
    "outputs/*/runs/*/snapshots/*", "outputs/*/data/*", "outputs/*/reference/*", "outputs/*/samples/*",
    "outputs/*/code/*", "outputs/*/times/*", ".dvc/cache/files/md5/*/*", "dvc.lock", ".work/dvc.lock",
    ".work/*/*/final/*", ".work/*/*/time.json", ".work/speeds.json", ".work/*/source.json",
)  # fmt: skip


class LostError(RuntimeError):
    """Something was lost, wrong, endless, or not said in a line."""


class LockKiller(Killer):
    """Kills of which every third leaves dvc.lock as a kill while DVC writes it: cut anywhere."""

    def _let_end(self, process: Any, processes: list[psutil.Process]) -> None:
        super()._let_end(process, processes)
        path = self.space.folder / "dvc.lock"
        if path.exists() and self.random.random() < 1 / 3:
            path.write_bytes(path.read_bytes()[: self.random.randrange(path.stat().st_size)])
            self.killed["lock file"] += 1


class Made:
    """The workload as it is when all was made, and copies of it to harm.

    Args:
        killer: which has trained it without disturbance.
        folder: for the copies.
    """

    def __init__(self, killer: Killer, folder: Path) -> None:
        self.space, self.expected = killer.space, killer.outputs
        self.whole = folder / "whole"
        self._run()
        shutil.copytree(self.space.folder, self.whole, symlinks=True)

    def restore(self) -> Path:
        """The workspace as it was; times of files are kept, and DVC believes them."""
        shutil.rmtree(self.space.folder)
        shutil.copytree(self.whole, self.space.folder, symlinks=True)
        return self.space.folder

    def go_on(self, what: str) -> None:
        """Run to the end and compare."""
        code, said = self._run()
        if code or "Traceback" in said:
            raise LostError(f"{what}: ended with {code}: {said[-1500:]}")
        if recorded(self.space.folder) != self.expected:
            raise LostError(f"{what}: the results differ from those of the undisturbed training")

    def _run(self, limit: Callable[[], None] | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", *COMMAND], cwd=self.space.folder, env=self.space.environment, capture_output=True,
            text=True, errors="replace", timeout=PATIENCE, check=False, preexec_fn=limit,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def fill(self, size: int) -> bool:
        """Run on a disk on which no file may be larger than some bytes; whether that was too little."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        try:
            code, said = self._run(limit)
        except subprocess.TimeoutExpired as error:
            raise LostError(f"no file beyond {size} bytes: it did not end") from error
        if "Traceback" in said:
            raise LostError(f"no file beyond {size} bytes: {said[-1500:]}")
        return code != 0


def flip(path: Path, bit: int, hidden: bool) -> None:
    """Flip a bit; if hidden, so that neither the size nor the time of the file shows it."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode)
    if hidden:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def survive_flips(made: Made, count: int, chosen: random.Random) -> Counter[str]:
    """Flip bits in files of all kinds, let every result that may be read be read, and compare."""
    flipped: Counter[str] = Counter()
    for number in range(count):
        root, kind = made.restore(), KINDS[number % len(KINDS)]
        files = sorted(path for path in root.glob(kind) if path.is_file() and path.stat().st_size)
        if not files:
            raise LostError(f"there is no {kind}")
        path = chosen.choice(files)
        flip(path, chosen.randrange(8 * path.stat().st_size), hidden=chosen.random() < 0.5)
        # What was made of it has to be made again, so that it is read.
        for result in (*root.glob("reports/*/index.html"), *root.glob("reports/*/metrics/*.json")):
            result.unlink()
        made.go_on(f"a bit of {path.relative_to(root)}")
        flipped[kind.split("/")[0]] += 1
    return flipped


def survive_full_disks(made: Made, killer: Killer, count: int, chosen: random.Random) -> int:
    """Let files be no larger than some bytes, while all is made; then without a limit, and compare."""
    full = 0
    for _ in range(count):
        shutil.rmtree(made.space.folder)
        shutil.copytree(killer.clean, made.space.folder, symlinks=True)
        size = int(10 ** chosen.uniform(3, 5.3))
        full += made.fill(size)
        made.go_on(f"after no file beyond {size} bytes")
    return full


def tested(name: str, *more: str) -> str:
    """Run a test that does the part; its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "0", *more, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostError(done.stdout[-1500:])
    return done.stdout.strip().splitlines()[-1]


def main() -> int:
    """All parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    for name, default in (("kills", 60), ("full", 20), ("flips", 50), ("mutations", 2500), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hostile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    chosen, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="faults"))
    try:
        survive(options, chosen, folder)
    except (LostError, RuntimeError) as error:
        print(f"LOST: {error}\nleft for inspection: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def survive(options: argparse.Namespace, chosen: random.Random, folder: Path) -> None:
    """All parts, each with a line of how many it survived; a LostError or a RuntimeError says what was lost."""
    if options.kills or options.full or options.flips:
        start = time.monotonic()
        killer = LockKiller(folder, "inline", options.seed, PARAMS)
        killer.prepare()
        print(f"made without disturbance in {time.monotonic() - start:.0f} s", flush=True)
        for _ in range(options.kills):
            killer.kill_once()
        if options.kills:
            killer.finish()
            which = ", ".join(f"{kind} {count}" for kind, count in sorted(killer.killed.items()))
            print(f"kills survived: {options.kills} ({which})", flush=True)
        made = Made(killer, folder)
        flipped = survive_flips(made, options.flips, chosen)
        print(f"flipped bits survived: {flipped.total()} ({dict(flipped)})", flush=True)
        full = survive_full_disks(made, killer, options.full, chosen)
        print(f"full disks survived: {full}, and {options.full - full} limits that were no limit", flush=True)
    if options.hostile:
        print(f"hostile files: {tested('tests/fuzz/test_attacks.py', '-m', 'slow or not slow')}", flush=True)
    if options.mutations:
        os.environ["MUTATIONS"] = str(options.mutations)
        print(f"{options.mutations} mutations: {tested('tests/fuzz/test_params_fuzz.py')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
