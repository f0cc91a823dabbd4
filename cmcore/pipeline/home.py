"""A home and a name for a user who has none, as in containers that run under any number."""

import os
import tempfile
from pathlib import Path

PRIVATE = 0o700


def give_home() -> None:
    """Let HOME and USER be set where nothing says what they are, without which libraries fail or write elsewhere.

    Processes that this one starts have them, too.
    """
    if os.path.expanduser("~") != "~":
        return
    name = f"cmlab-{os.getuid()}"
    home = Path(tempfile.gettempdir(), name)
    home.mkdir(mode=PRIVATE, exist_ok=True)
    if home.stat().st_uid != os.getuid():  # somebody else's, who may read what is written there
        home = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    os.environ["HOME"] = str(home)
    os.environ.setdefault("USER", name)
