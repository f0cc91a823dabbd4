"""Kills, full disks, flipped bits, hostile files and wrong parameters; nothing may be lost, wrong or without a line.

    python -m benchmarks.faults [--only kills full flips hostile mutations] [--count N] [--seed 1]

Each part prints a row of a table: how many faults there were, of which kinds, and in what time. A tiny workload is made
once without disturbance. After every kill, full disk and flipped bit `cmlab repro` has to go on by itself, to the same
bits. The first fault that is not survived ends it with 1, and leaves its files for inspection.
"""

import argparse
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills import PARAMS, PATIENCE, RUNS, Killer, position, recorded
from benchmarks.workspace import Workspace
from cmcore.closure import ROOT
from cmcore.pipeline.common import git_revision

COUNTS = {"kills": 60, "full": 20, "flips": 50, "hostile": 1000, "mutations": 2500}
TRACKED = {**PARAMS, "tracking": {"mlflow": True}, "compute": {**PARAMS["compute"], "backend": "inline"}}
REPRO = ("cmcore.commands", "repro", "--jobs", "1")
KINDS = (
    "outputs/*/runs/*/weights.safetensors", "outputs/*/runs/*/history.jsonl", "outputs/*/runs/*/summary.json",
    "outputs/*/runs/*/snapshots/*", "outputs/*/data/*", "outputs/*/reference/*", "outputs/*/samples/*",
    "outputs/*/code/*", "outputs/*/times/*", ".dvc/cache/files/md5/*/*", "dvc.lock", ".work/dvc.lock",
    ".work/*/*/final/*", ".work/*/*/time.json", ".work/speeds.json", ".work/*/source.json", ".tracking/mlflow.db",
)  # fmt: skip
DISK = 2**29  # bytes of a disk that becomes full
ON_THE_DISK = ("project", "site", "temp")  # the checkout with all results, DVC's site cache, or temporary files


class LostError(RuntimeError):
    """Something was lost, wrong, endless, or not said in a line."""


class FaultKiller(Killer):
    """Kills of which some cut dvc.lock, as one while DVC writes it does, and some come in the first start of MLflow."""

    first_start = False  # whether the next kill waits for MLflow
    seen = 0.0  # when it began

    def kill_once(self) -> None:
        self.first_start, self.seen = self.random.random() < 1 / 4, 0.0
        if self.first_start:
            shutil.rmtree(self.space.folder / ".tracking", ignore_errors=True)
        super().kill_once()

    def _is_time(self, moment: float, aim: int | None) -> bool:
        if not self.first_start:
            return super()._is_time(moment, aim)
        if not self.seen and any(self.space.folder.glob(".tracking/.mlflow.db.part*")):
            self.seen = time.monotonic() + self.random.uniform(0.0, 2.0)
        return 0.0 < self.seen <= time.monotonic()

    def _let_end(self, process: Any, processes: list[psutil.Process]) -> None:
        super()._let_end(process, processes)
        path = self.space.folder / "dvc.lock"
        if self.first_start:
            self.killed["MLflow's first start"] += 1
        elif path.exists() and self.random.random() < 1 / 2:
            path.write_bytes(path.read_bytes()[: self.random.randrange(path.stat().st_size)])
            self.killed["dvc.lock cut"] += 1

    def _ended(self, code: int) -> None:
        if not code:  # what MLflow missed, it gets
            self._run("cmcore.commands", "sync")
            with closing(sqlite3.connect(self.space.folder / ".tracking/mlflow.db")) as database:
                there = {name for (name,) in database.execute("select value from tags where key = 'run'")}
            if not there.issuperset(RUNS):
                raise RuntimeError(f"MLflow has {sorted(there)} of the runs {sorted(RUNS)}")
        super()._ended(code)


class Made:
    """The workload as it is before and after all was made, and a workspace for copies of it to harm.

    Args:
        folder: for them.
    """

    def __init__(self, folder: Path) -> None:
        self.space = Workspace(folder / "project", TRACKED)
        self.clean, self.whole, self.temp = folder / "clean", folder / "whole", folder / "temp"
        self.temp.mkdir()
        self.space.variables["TMPDIR"] = str(self.temp)
        for words, kept in ((("dvc", "repro", "prepare"), self.clean), (REPRO, self.whole)):
            start = time.monotonic()
            code, said = self.run(*words)
            if code:
                raise LostError(f"without disturbance: {said[-1500:]}")
            self.seconds = time.monotonic() - start
            shutil.copytree(self.space.folder, kept, symlinks=True)
        self.expected, self.lines = recorded(self.space.folder), position(self.space.folder)

    def restore(self, source: Path) -> Path:
        """The workspace as it was; times of files are kept, and DVC believes them."""
        for path in self.space.folder.iterdir():  # the folder itself may be a disk
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
        shutil.copytree(source, self.space.folder, symlinks=True, dirs_exist_ok=True)
        return self.space.folder

    def go_on(self, what: str) -> None:
        """Run to the end and compare."""
        code, said = self.run(*REPRO)
        if code or "Traceback" in said:
            raise LostError(f"{what}: ended with {code}: {said[-1500:]}")
        if recorded(self.space.folder) != self.expected:
            raise LostError(f"{what}: the results differ from those of the undisturbed training")

    def run(self, *words: str, harm: Callable[[subprocess.Popen[str]], None] | None = None) -> tuple[int, str]:
        """The exit code of a module, and all that it said.

        Args:
            words: the module and its arguments.
            harm: called with the process in a thread of its own.
        """
        with subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.space.folder, env=self.space.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            if harm:
                threading.Thread(target=harm, args=(process,), daemon=True).start()
            try:
                said, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired as error:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                raise LostError(f"{' '.join(words)}: it did not end") from error
        return process.returncode, said


def flip(path: Path, bit: int, hidden: bool) -> None:
    """Flip a bit; if hidden, so that neither the size nor the time of the file shows it."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode)
    if hidden:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def survive_flips(count: int, chosen: random.Random, folder: Path) -> Counter[str]:
    """Flip bits in files of all kinds, let every result that may be read be read, and compare."""
    made, flipped = Made(folder), Counter[str]()
    for number in range(count):
        root, kind = made.restore(made.whole), KINDS[number % len(KINDS)]
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


class Disk:
    """A disk of its own at a folder, which can be filled to the last byte.

    Args:
        folder: which is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / ".ballast"

    def fill(self) -> None:
        """Take all that is left."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                return

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk at an empty folder for the time of the block; a LostError says that this machine does not allow it."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostError(f"a full disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def survive_full_disks(count: int, chosen: random.Random, folder: Path) -> Counter[str]:
    """Let a disk become full while all is made, at moments by chance; free it, go on, and compare."""
    made, full = Made(folder), Counter[str]()
    for number in range(count):
        name = ON_THE_DISK[number % len(ON_THE_DISK)]
        place = {"project": made.space.folder, "site": folder / "site", "temp": made.temp}[name]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with mounted(place) as disk:
            made.restore(made.clean)
            line = chosen.randint(1, made.lines) if chosen.random() < 0.5 else made.lines + 1
            code, said = made.run(
                *REPRO, harm=full_at(disk, line, chosen.uniform(0.0, made.seconds), made.space.folder)
            )
            if "Traceback" in said:
                raise LostError(f"the disk of {name} is full: {said[-1500:]}")
            full[f"{name}: {'stopped with a line' if code else 'not needed any more'}"] += 1
            disk.free()
            made.go_on(f"after the disk of {name} was full")
    return full


def full_at(disk: Disk, line: int, seconds: float, root: Path) -> Callable[[subprocess.Popen[str]], None]:
    """Fills the disk once the histories have so many lines, or after some time, until the process ends."""

    def harm(process: subprocess.Popen[str]) -> None:
        moment = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < moment and position(root) < line:
            time.sleep(0.02)
        while process.poll() is None:
            disk.fill()
            time.sleep(0.05)

    return harm


def survive_kills(count: int, seed: int, folder: Path) -> Counter[str]:
    """Kill processes at moments by chance, cut dvc.lock, and compare whenever all was made."""
    killer = FaultKiller(folder, "inline", seed, TRACKED)
    killer.prepare()
    for _ in range(count):
        killer.kill_once()
    killer.finish()
    return killer.killed


def tested(name: str, *more: str) -> Counter[str]:
    """Run a test that does a part."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "0", *more, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostError(done.stdout[-1500:])
    return Counter({done.stdout.strip().splitlines()[-1].partition(" in ")[0]: 1})


def survive(part: str, count: int, seed: int, folder: Path) -> Counter[str]:
    """One part; the result is what it survived. A LostError or a RuntimeError says what was lost."""
    chosen = random.Random(f"{part} {seed}")
    folder.mkdir(parents=True)
    if part == "kills":
        return survive_kills(count, seed, folder)
    if part == "full":
        return survive_full_disks(count, chosen, folder)
    if part == "flips":
        return survive_flips(count, chosen, folder)
    os.environ |= {"HOSTILE": str(count), "MUTATIONS": str(count)}
    if part == "hostile":
        return tested("tests/fuzz/test_attacks.py", "-m", "slow or not slow")
    return tested("tests/fuzz/test_params_fuzz.py")


def main() -> int:
    """The parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(COUNTS), default=list(COUNTS), metavar="PART")
    parser.add_argument("--count", type=int, default=0, help="of every part; 0: " + str(COUNTS))
    parser.add_argument("--seed", type=int, default=1)
    options, folder = parser.parse_args(), Path(tempfile.mkdtemp(prefix="faults"))
    print(f"Commit {git_revision(ROOT)}, Python {platform.python_version()}, {os.cpu_count()} cores.\n")
    print("| part | faults | lost | min | which |\n| --- | ---: | ---: | ---: | --- |", flush=True)
    for part in options.only:
        count, start = options.count or COUNTS[part], time.monotonic()
        try:
            found = survive(part, count, options.seed, folder / part)
        except (LostError, RuntimeError) as error:
            print(f"LOST: {part}: {error}\nleft for inspection: {folder}", file=sys.stderr)
            return 1
        which = ", ".join(f"{kind} {number}" for kind, number in sorted(found.items()))
        print(f"| {part} | {count} | 0 | {(time.monotonic() - start) / 60:.0f} | {which} |", flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
