"""Feature extractors that come with the project, so that distances compare between machines.

A classifier that is trained anew gets other bits, and so another name, on every kind of processor. The weights of the
default workloads lie beside this file, as `shipped.<workload>.safetensors`; `cmlab ship-extractor` trains them anew.
"""

from pathlib import Path

from cmcore.config import ConfigError
from cmcore.evaluate.features import NetworkExtractor

SHIPPED = "shipped"  # the value of `eval.extractor` that asks for them


def shipped_file(workload: str) -> Path:
    """Where the weights of a workload are, or would be."""
    return Path(__file__).with_name(f"{SHIPPED}.{workload}.safetensors")


def shipped_extractor(workload: str) -> NetworkExtractor:
    """The extractor of a workload; a ConfigError lists those there are."""
    if not shipped_file(workload).is_file():
        there = sorted(path.name.split(".")[1] for path in Path(__file__).parent.glob(f"{SHIPPED}.*.safetensors"))
        raise ConfigError(
            "eval.extractor", f"{SHIPPED!r} is there for {', '.join(there)}; expected '' to train one for {workload!r}"
        )
    return NetworkExtractor.load(shipped_file(workload))
