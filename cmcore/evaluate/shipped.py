"""Feature extractors that come with the project, so that distances compare between machines.

A classifier that is trained anew gets other bits, and so another name, on every kind of processor.
"""

from cmcore.config import ConfigError
from cmcore.evaluate.features import NetworkExtractor
from cmcore.layers.classifier import SHIPPED, shipped_file, shipped_workloads


def shipped_extractor(workload: str) -> NetworkExtractor:
    """The extractor of a workload; a ConfigError lists those there are."""
    if not shipped_file(workload).is_file():
        there = sorted(shipped_workloads().values())
        raise ConfigError(
            "eval.extractor", f"{SHIPPED!r} is there for {', '.join(there)}; expected '' to train one for {workload!r}"
        )
    return NetworkExtractor.load(shipped_file(workload))
