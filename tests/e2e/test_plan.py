import pytest

from cmcore.assemble.project import load_project
from cmcore.closure import ROOT
from cmcore.pipeline.speeds import GUESS, STARTING, Speeds, changed_stages

TINY = load_project(ROOT / "tests" / "e2e" / "tiny.yaml")
PARENTS = {
    "prepare": [], "train@edm": ["prepare"], "train@ect": ["prepare", "train@edm"], "train@ict": ["prepare"],
    "evaluate@ect": ["train@ect"], "tabulate": ["evaluate@ect", "train@ict"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, []),
        ({"tabulate": []}, ["tabulate"]),
        ({"train@ect": []}, ["train@ect", "evaluate@ect", "tabulate"]),
        ({"train@edm": []}, ["train@edm", "train@ect", "evaluate@ect", "tabulate"]),
        ({"prepare": []}, list(PARENTS)),
    ],
)
def test_what_depends_on_a_change_is_planned(status, expected):
    assert changed_stages(status, PARENTS) == expected


def test_estimates_follow_what_was_measured_and_survive_a_restart(tmp_path):
    speeds = Speeds.read(tmp_path / "speeds.json")
    assert speeds.expected("train@ect", TINY) == pytest.approx(STARTING + GUESS["train"] * 2048)
    speeds.learn("train@ect", TINY, 100.0)
    assert speeds.work("train@ect", TINY) == pytest.approx(100)
    again = Speeds.read(tmp_path / "speeds.json")
    assert again.expected("train@ect", TINY) == pytest.approx(STARTING + 100)
    assert again.expected("train@edm", TINY) == pytest.approx(STARTING + 100)


def test_a_damaged_memory_is_forgotten(tmp_path):
    (tmp_path / "speeds.json").write_text("[1, 2")
    assert Speeds.read(tmp_path / "speeds.json").seconds == {}
