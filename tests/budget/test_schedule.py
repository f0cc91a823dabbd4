"""Makespans against schedules worked out by hand."""

import pytest

from cmcore.budget.schedule import makespan

COSTS = {"teacher": 10.0, "a": 4.0, "b": 3.0, "c": 3.0, "other": 5.0}
NEEDS = {"a": ["teacher"], "b": ["teacher"], "c": ["teacher"]}


@pytest.mark.parametrize(("jobs", "expected"), [(1, 25.0), (2, 16.0), (3, 14.0), (9, 14.0)])
def test_students_wait_for_their_teacher(jobs, expected):
    assert makespan(COSTS, NEEDS, jobs) == expected


def test_the_longest_chain_goes_first():
    assert makespan({"short": 1.0, "long": 4.0, "after": 3.0}, {"after": ["long"]}, 1) == 8.0
    assert makespan({"a": 3.0, "b": 3.0, "c": 4.0, "after": 5.0}, {"after": ["c"]}, 2) == 9.0


def test_a_need_that_is_no_job_is_done():
    assert makespan({"a": 2.0}, {"a": ["random"]}, 1) == 2.0
    assert makespan({}, {}, 2) == 0.0


def test_jobs_that_wait_for_one_another_are_refused():
    with pytest.raises(ValueError, match="wait for one another: "):
        makespan({"a": 1.0, "b": 1.0}, {"a": ["b"], "b": ["a"]}, 2)
