"""The bounds that every list schedule keeps, and the graph of the pipeline against dvc.yaml itself."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_project

from benchmarks.graph import critical_path, durations, makespan, pipeline, repro, schedule
from cmcore.pipeline.speeds import RECORDING, Speeds

DIAMOND = ({"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0}, {"b": ["a"], "c": ["a"], "d": ["b", "c"]})


@st.composite
def graphs(draw):
    """Random jobs, each of which needs some of the earlier ones."""
    count = draw(st.integers(1, 9))
    seconds = {str(job): float(draw(st.integers(1, 20))) for job in range(count)}
    needs = {str(job): [str(other) for other in range(job) if draw(st.booleans())] for job in range(count)}
    return seconds, needs


@given(graphs(), st.integers(1, 10))
def test_a_schedule_keeps_the_bounds_of_list_scheduling(graph, nodes):
    seconds, needs = graph
    slots = schedule(seconds, needs, nodes)
    span, path, work = makespan(slots), critical_path(seconds, needs), sum(seconds.values())
    assert set(slots) == set(seconds)
    assert max(path, work / nodes) <= span <= work / nodes + path * (1 - 1 / nodes) + 1e-9
    assert span == work or nodes > 1
    assert span == path or nodes < len(seconds)


@given(graphs(), st.integers(1, 4))
def test_jobs_wait_for_what_they_need_and_nodes_do_one_at_a_time(graph, nodes):
    seconds, needs = graph
    slots = schedule(seconds, needs, nodes)
    assert all(slots[other].end <= slots[job].start for job in needs for other in needs[job])
    by_node = sorted(slots.values(), key=lambda slot: (slot.node, slot.start))
    assert all(a.end <= b.start for a, b in itertools.pairwise(by_node) if a.node == b.node)
    assert {slot.node for slot in slots.values()} <= set(range(nodes))


@pytest.mark.parametrize(("nodes", "expected"), [(1, 8.0), (2, 6.0), (64, 6.0)])
def test_a_diamond(nodes, expected):
    assert makespan(schedule(*DIAMOND, nodes)) == expected
    assert critical_path(*DIAMOND) == 6.0


def test_the_pipeline_has_the_stages_and_edges_of_dvc(tmp_path):
    project = tiny_project()
    needs = pipeline(project, copies=2)
    assert len(needs) == 4 + 2 * 2 * len(project.runs)
    assert needs["train@ect#1"] == ["prepare", "train@edm#1"]
    assert needs["edit"] == ["prepare", *(f"train@{name}#0" for name in project.runs)]
    assert needs["train@ict#0"] == ["prepare"]
    assert set(needs["evaluate@ect#0"]) == {"prepare", "reference", "train@ect#0", "train@edm#0"}
    seconds = durations(project, needs, Speeds.read(tmp_path / "none.json"))
    recording = RECORDING * (len(needs) - 2)
    assert repro(seconds, needs, 1) == pytest.approx(sum(seconds.values()) + recording)
    assert repro(seconds, needs, 64) == pytest.approx(critical_path(seconds, needs) + recording)
