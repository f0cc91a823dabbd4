"""The folder in which compiled networks are kept, so that each is compiled once and not in every stage.

PyTorch keys it by the code of the network, its shapes, the versions and the hardware.
"""

import os
from pathlib import Path

from cmcore.edge.settings import ComputeConfig

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(compute: ComputeConfig) -> None:
    """Let this process use the folder of the settings: of this machine, as a cluster's may differ in hardware.

    The environment's own choice has precedence.
    """
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(VARIABLE, compute.compile_cache or str(users / "cmlab" / "compiled"))
