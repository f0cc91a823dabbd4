"""Where compiled networks are kept: the environment's choice, that of the settings, the user's cache folder."""

import os

import pytest

from cmcore.edge.compile_cache import VARIABLE, keep_compiled
from cmcore.edge.settings import ComputeConfig


def test_who_decides_on_the_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    chosen = []
    for given, settings in (("", ""), ("", "/mine"), ("/given", "/mine")):
        monkeypatch.delenv(VARIABLE, raising=False)
        if given:
            monkeypatch.setenv(VARIABLE, given)
        keep_compiled(ComputeConfig(compile_cache=settings))
        chosen.append(os.environ[VARIABLE])
    assert chosen == ["/somewhere/cmlab/compiled", "/mine", "/given"]
