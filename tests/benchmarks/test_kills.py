"""A few of the kills of `python -m benchmarks.kills`, which does fifty and more."""

import pytest

from benchmarks.kills import survive

pytest.importorskip("dvc")
pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("pipeline")
def test_nothing_is_lost_in_a_few_kills(short_tmp):
    assert sum(survive(4, 1, ["repro"], short_tmp).values()) == 4
