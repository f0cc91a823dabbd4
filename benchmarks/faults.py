"""Kills, full disks, flipped bits, signals, hostile files and wrong parameters: nothing may be lost or without a line.

    python -m benchmarks.faults [--only kills full flips signals hostile mutations] [--count N] [--seed 1] [--into FILE]

Each part prints a row of a table: how many faults there were, and of which kinds. With `--into`, the row takes the
place of the part's last one in a Markdown page. A tiny workload is made once without disturbance. After every kill,
full disk and flipped bit `cmlab repro` has to go on by itself, to the same bits; after a signal all has to end at once.
The first fault that is not survived ends it with 1, and leaves its files for inspection.
"""

import argparse
import os
import platform
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills import PARAMS, PATIENCE, RUNS, Killer, digests, position, recorded
from benchmarks.signals import survive_signals
from benchmarks.workspace import Meter, Workspace
from cmcore.atomic import write_atomic
from cmcore.closure import ROOT, revision

COUNTS = {"kills": 60, "full": 20, "flips": 50, "signals": 0, "hostile": 10_000, "mutations": 2500}  # at most
SHORT = {**PARAMS, "train": {**PARAMS["train"], "images": 10_000}}  # a start takes longer than its training
TRACKED = {**SHORT, "tracking": {"mlflow": True}, "compute": {**PARAMS["compute"], "backend": "inline"}}
REPRO = ("cmcore.commands", "repro", "--jobs", "1")
# Files whose bits are flipped, and the results that have to be made again for these to be read.
REPORT, SCORES = ("reports/*/index.html",), ("reports/*/metrics/*.json", "reports/*/index.html")
CACHED = tuple(f"outputs/*/runs/{run}" for run in RUNS)
TRAINED = (*CACHED, ".dvc/cache", ".dvc/tmp")
KINDS: dict[str, tuple[str, ...]] = {
    "outputs/*/runs/*/weights.safetensors": SCORES, "outputs/*/runs/*/history.jsonl": REPORT,
    "outputs/*/runs/*/summary.json": SCORES, "outputs/*/runs/*/snapshots/*": SCORES, "outputs/*/data/*": SCORES,
    "outputs/*/reference/*": SCORES, "outputs/*/samples/*": REPORT, "outputs/*/code/*": REPORT,
    "outputs/*/edits/*": REPORT,
    "outputs/*/times/*": REPORT, ".dvc/cache/files/md5/*/*": CACHED, "dvc.lock": REPORT, ".work/dvc.lock": TRAINED,
    ".work/*/*/final/*": TRAINED, ".work/*/*/time.json": TRAINED, ".work/speeds.json": SCORES,
    ".work/needs.json": SCORES, ".tracking/mlflow.db": SCORES,
}  # fmt: skip
AT_ONCE = 8  # files that are damaged before one start
DISK = 2**29  # bytes of a disk that becomes full; `cmlab repro` asks for half of it before it begins
LOOK = 0.1  # seconds
SAYS_SPACE = re.compile(r"free some|No space left|disk is full|disk of .* is full", re.IGNORECASE)
PAGE = """# Faults

`python -m benchmarks.faults` harms a tiny workload and compares its results with those of an undisturbed run, bit for
bit. It writes this page: a row for each part, of the last time that it was run.

"""
HEAD, RULE = (
    "| part | faults | lost | which | commit | day | machine |",
    "| --- | ---: | ---: | --- | --- | --- | --- |",
)
TESTS = {
    "hostile": ("tests/fuzz/test_attacks.py", "-m", "slow or not slow", "-k", "all_hostile"),
    "mutations": ("tests/fuzz/test_params_fuzz.py", "-k", "mutated or damaged"),
}  # that do a part
SAID = "counted: "  # begins the line in which they say what they did


class LostError(RuntimeError):
    """Something was lost, wrong, endless, or not said in a line."""


class FaultKiller(Killer):
    """Kills of which some cut dvc.lock, as one while DVC writes it does, and some come in the first start of MLflow."""

    first_start = False  # whether the next kill waits for MLflow
    tracked = False  # whether MLflow has been at work since all began anew
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
            self.tracked, self.seen = True, time.monotonic() + self.random.uniform(0.0, 2.0)
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
        if not code and self.tracked:  # what MLflow missed, it gets
            self._run("cmcore.commands", "sync")
            with closing(sqlite3.connect(self.space.folder / ".tracking/mlflow.db")) as database:
                there = {name for (name,) in database.execute("select value from tags where key = 'run'")}
            if not there.issuperset(RUNS):
                raise RuntimeError(f"MLflow has {sorted(there)} of the runs {sorted(RUNS)}")
            self.tracked = False
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
            try:
                self.seconds = self.space.call(*words).cpu
            except RuntimeError as error:
                raise LostError(f"without disturbance: {error}") from error
            shutil.copytree(self.space.folder, kept, symlinks=True)
        self.expected, self.lines = self._results(), position(self.space.folder)

    def _results(self) -> dict[str, str]:
        return recorded(self.space.folder) | digests(self.space.folder.glob("outputs/*/samples"), self.space.folder)

    def restore(self, source: Path) -> Path:
        """The workspace as it was; times of files are kept, and DVC believes them."""
        for path in self.space.folder.iterdir():  # the folder itself may be a disk
            remove(path)
        shutil.copytree(source, self.space.folder, symlinks=True, dirs_exist_ok=True)
        return self.space.folder

    def go_on(self, what: str) -> None:
        """Run to the end and compare."""
        code, said = self.run(*REPRO)
        if code or "Traceback" in said:
            raise LostError(f"{what}: ended with {code}: {said[-1500:]}")
        self.compare(what)

    def compare(self, what: str) -> None:
        """A LostError where the results are not those of the undisturbed training."""
        found = self._results()
        if different := [name for name, digest in self.expected.items() if found.get(name) != digest]:
            raise LostError(f"{what}: {', '.join(different)} differ from those of the undisturbed training")

    def run(self, *words: str, harm: Callable[[subprocess.Popen[str]], None] | None = None) -> tuple[int, str]:
        """The exit code of a module, and all that it said.

        Args:
            words: the module and its arguments.
            harm: called with the process in a thread of its own; ends with the process at the latest.
        """
        with subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.space.folder, env=self.space.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            harming = threading.Thread(target=harm, args=(process,), daemon=True) if harm else None
            if harming:
                harming.start()
            try:
                said, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired as error:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                raise LostError(f"{' '.join(words)}: it did not end") from error
            if harming:  # or it would go on in the next run
                harming.join()
        return process.returncode, said


def remove(path: Path) -> None:
    """A file, a link or a folder."""
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def flip(path: Path, bit: int, hidden: bool) -> None:
    """Flip a bit; if hidden, so that neither the size nor the time of the file shows it."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode)
    if hidden:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flips_at_once(count: int) -> list[list[str]]:
    """The kinds of the files to damage before each start: of all kinds equally, and such as are read together."""
    every = [list(KINDS)[number % len(KINDS)] for number in range(count)]
    alike = [[kind for kind in every if KINDS[kind] == again] for again in dict.fromkeys(KINDS.values())]
    return [kinds[at : at + AT_ONCE] for kinds in alike for at in range(0, len(kinds), AT_ONCE)]


def survive_flips(count: int, chosen: random.Random, folder: Path) -> Counter[str]:
    """Flip bits in files of all kinds, let every result that may be read be read, and compare."""
    made, flipped = Made(folder), Counter[str]()
    for kinds in flips_at_once(count):
        root, damaged = made.restore(made.whole), set[Path]()
        for kind in kinds:
            files = {path for path in root.glob(kind) if path.is_file() and path.stat().st_size}
            if not files:
                raise LostError(f"there is no {kind}")
            path = chosen.choice(sorted(files - damaged or files))
            flip(path, chosen.randrange(8 * path.stat().st_size), hidden=chosen.random() < 0.5)
            damaged.add(path)
            flipped[kind.partition("/")[0]] += 1
        for again in KINDS[kinds[0]]:
            for result in root.glob(again):
                remove(result)
        made.go_on("bits of " + ", ".join(str(path.relative_to(root)) for path in sorted(damaged)))
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

    def free(self) -> bool:
        """Give it back; whether it was taken."""
        taken = self._ballast.exists()
        self._ballast.unlink(missing_ok=True)
        return taken


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk at a new folder for the time of the block; a LostError says that this machine does not allow it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostError(f"a full disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def survive_full_disks(count: int, chosen: random.Random, folder: Path) -> Counter[str]:
    """Let one of three disks become full at moments by chance, free it, go on, and compare whenever all was made."""
    made, full = Made(folder), Counter[str]()
    # The checkout with all results, DVC's site cache, and temporary files.
    places = {"project": made.space.folder, "site": folder / "site", "temp": made.temp}
    with ExitStack() as stack:
        disks = {name: stack.enter_context(mounted(place)) for name, place in places.items()}
        root = made.restore(made.clean)
        while full.total() < count:
            name = list(disks)[full.total() % len(disks)]
            left = made.lines - position(root)
            line = made.lines - chosen.randrange(left) if left and chosen.random() < 0.5 else made.lines + 1
            seconds = chosen.uniform(0.0, made.seconds * max(1 / 4, left / made.lines))
            code, said = made.run(*REPRO, harm=full_at(disks[name], line, seconds, root))
            filled = disks[name].free()
            if "Traceback" in said or (code and not (filled and SAYS_SPACE.search(said))):
                raise LostError(f"the disk of {name} was {'full' if filled else 'not full'}: {said[-1500:]}")
            full[f"{name}, {'which stopped it' if code else 'which it did not need'}"] += filled
            if not code:
                made.compare(f"the disk of {name} was full")
                made.restore(made.clean)
        made.go_on("after full disks")
    return full


def full_at(disk: Disk, line: int, seconds: float, root: Path) -> Callable[[subprocess.Popen[str]], None]:
    """Fills the disk once the histories have so many lines, or after some processor time, until the process ends."""

    def harm(process: subprocess.Popen[str]) -> None:
        meter = Meter(process.pid)
        while process.poll() is None and meter.seconds < seconds and position(root) < line:
            time.sleep(LOOK)
            meter.look()
        while process.poll() is None:
            disk.fill()
            time.sleep(LOOK / 2)

    return harm


def survive_kills(count: int, seed: int, folder: Path) -> Counter[str]:
    """Kill processes at moments by chance, cut dvc.lock, and compare whenever all was made."""
    killer = FaultKiller(folder, "inline", seed, TRACKED)
    killer.prepare()
    for _ in range(count):
        killer.kill_once()
    killer.finish()
    return killer.killed


def tested(name: str, *more: str) -> str:
    """Run the tests that do a part; the result is what they say of it."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-p", "no:cacheprovider", "--timeout", "0"]
    done = subprocess.run([*command, *more, name], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LostError(done.stdout[-1500:])
    said = [line.partition(SAID)[2] for line in done.stdout.splitlines() if SAID in line]
    return "; ".join(said)


def survive(part: str, count: int, seed: int, folder: Path) -> tuple[int, str]:
    """One part: how many faults were survived, and which. A LostError or a RuntimeError says what was lost."""
    chosen = random.Random(f"{part} {seed}")
    folder.mkdir(parents=True)
    if part in TESTS:
        os.environ |= {part.upper(): str(count)}
        which = tested(*TESTS[part])
        return int(which.partition(" ")[0]), which
    if part == "signals":
        return survive_signals(count, folder)
    if part == "kills":
        found = survive_kills(count, seed, folder)
    elif part == "full":
        found = survive_full_disks(count, chosen, folder)
    else:
        found = survive_flips(count, chosen, folder)
    return count, ", ".join(f"{kind} {number}" for kind, number in sorted(found.items()) if number)


def machine() -> str:
    """The machine in words, and how much it had to do in the last quarter of an hour."""
    memory, load = psutil.virtual_memory().total / 2**30, os.getloadavg()[2]
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, load {load:.1f}"


def rows_of(page: Path) -> dict[str, str]:
    """The rows of a page that was written before, by part."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    return {part: rows[part] for part in COUNTS if part in rows}


def write_page(page: Path, part: str, row: str) -> None:
    """Put the row of a part into the page, in place of its last one."""
    rows = rows_of(page) | {part: row}
    table = [HEAD, RULE, *(rows[part] for part in COUNTS if part in rows)]
    write_atomic(page, (PAGE + "\n".join(table) + "\n").encode())


def main() -> int:
    """The parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(COUNTS), default=list(COUNTS), metavar="PART")
    parser.add_argument("--count", type=int, default=0, help="of every part; 0: " + str(COUNTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--into", type=Path, help="a Markdown page that keeps the last row of every part")
    options, folder = parser.parse_args(), Path(tempfile.mkdtemp(prefix="faults"))
    print(f"{HEAD}\n{RULE}", flush=True)
    for part in options.only:
        commit, day = revision(), time.strftime("%F")
        try:
            count, which = survive(part, options.count or COUNTS[part], options.seed, folder / part)
        except (LostError, RuntimeError) as error:
            print(f"LOST: {part}: {error}\nleft for inspection: {folder}", file=sys.stderr)
            return 1
        row = f"| {part} | {count} | 0 | {which} | {commit[:7]}{commit[40:]} | {day} | {machine()} |"
        print(row, flush=True)
        if options.into:
            write_page(options.into, part, row)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
