"""Give hostile files to their readers, one after the other, and print what each did, took and said.

Called as `python attack_runner.py < list`, whose lines are JSON: [reader, path]. Memory is the peak of the process
above what it held before; a reader in a loop of C is ended by the caller, who knows from the lines which it was.
"""

import ctypes
import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cmcore.config import load_yaml
from cmcore.data.settings import DataConfig
from cmcore.data.sources.arrays import read_arrays
from cmcore.data.sources.cifar10 import load_batch
from cmcore.data.sources.decode import decode
from cmcore.data.sources.latents import _read
from cmcore.data.sources.pictures import pictures
from cmcore.data.sources.survey import survey
from cmcore.evaluate.features import NetworkExtractor
from cmcore.evaluate.published import read_moments
from cmcore.nets.public.foreign import load_foreign, named_tensors

SECONDS = 20.0  # of processor time, after which a reader in Python is interrupted, whatever else the machine does


def read_pictures(path: Path) -> None:
    source = pictures(DataConfig(source="archive", path=str(path), resolution=8, channels=3))
    for _ in source.blocks():
        pass


def look(path: Path) -> None:
    """At an archive, or at an image, which is alone in its folder."""
    survey(path if path.suffix in (".zip", ".tar", ".gz", ".bz2", ".xz") else path.parent)


READERS: dict[str, Any] = {
    "foreign": lambda path: dict(named_tensors(load_foreign(path))),
    "cifar10": lambda path: load_batch(path.read_bytes(), str(path)),
    "moments": lambda path: read_moments(path, 4),
    "image": lambda path: decode(path.read_bytes(), 3, name=str(path)),
    "archive": read_pictures,
    "survey": look,
    "array": lambda path: read_arrays(path, 1),
    "latents": lambda path: _read(path.read_bytes(), (8, 8, 8), str(path)),
    "extractor": NetworkExtractor.load,
    "yaml": load_yaml,
}


def memory(key: str) -> int:
    """VmRSS or VmHWM in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) // 1024


def interrupt(*_: Any) -> None:
    raise TimeoutError("interrupted")


def run(reader: str, path: Path) -> dict[str, Any]:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        READERS[reader](path)
        kind, message = "", ""
    except BaseException as error:
        kind, message = "|".join(base.__name__ for base in type(error).__mro__), str(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - start
    return {"kind": kind, "message": message, "seconds": seconds, "mib": memory("VmHWM") - before}


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, interrupt)
    resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
    for line in sys.stdin:
        reader, place = json.loads(line)
        print(json.dumps({"reader": reader, "path": place}), flush=True)  # noqa: T201
        print(json.dumps(run(reader, Path(place))), flush=True)  # noqa: T201
