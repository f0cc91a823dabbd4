"""Feature extractors that come with the project, so that distances compare between machines.

A classifier that is trained anew gets other bits, and so another name, on every kind of processor.
"""

from cmcore.config import ConfigError
from cmcore.evaluate.features import NetworkExtractor
from cmcore.layers.classifier import SHIPPED, shipped_file


def shipped_source(workload: str) -> str:
    """The workload whose extractor one uses: itself, or the one that its name goes on from, as digits-guided does.

    Raises:
        ConfigError: there is none; it lists those there are.
    """
    files = shipped_file("*")
    there = sorted(file.name.split(".")[1] for file in files.parent.glob(files.name))
    for name in there:
        if workload == name or workload.startswith(f"{name}-"):
            return name
    raise ConfigError(
        "eval.extractor", f"{SHIPPED!r} is there for {', '.join(there)}; expected '' to train one for {workload!r}"
    )


def shipped_extractor(workload: str) -> NetworkExtractor:
    """The extractor of a workload; a ConfigError lists those there are."""
    return NetworkExtractor.load(shipped_file(shipped_source(workload)))
