"""Adopting what a search found: exactly its values change, and every comment stays."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cmcore.commands.adopt import adopt
from cmcore.commands.parameter_file import changed
from cmcore.config import ConfigError, load_yaml, merge

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "workloads" / "digits.yaml").read_text(encoding="utf-8")
BEST = {"runs": {"ect": {"options": {"q": 3.217, "P_mean": -0.4}, "train": {"lr": 2.5e-5}}}}


@pytest.fixture
def project(tmp_path):
    """A project folder whose search has run."""
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads" / "digits.yaml").write_text(TEXT, encoding="utf-8")
    found = tmp_path / "reports" / "digits" / "tune" / "ect_schedule"
    found.mkdir(parents=True)
    (found / "best.yaml").write_text(yaml.safe_dump(BEST), encoding="utf-8")
    return tmp_path


def comments(text: str) -> list[str]:
    return re.findall(r"#.*", text)


def test_nothing_but_the_values_changes(project):
    before = load_yaml(project / "params.yaml")
    said = "\n".join(adopt("ect_schedule", project))
    text = (project / "params.yaml").read_text(encoding="utf-8")
    assert load_yaml(project / "params.yaml") == merge(before, BEST)
    assert comments(text) == comments(TEXT)
    # Lines that hold no changed value stay as they are, with their numbers as they were written.
    kept = [line for line in TEXT.splitlines() if line not in text.splitlines()]
    assert len(kept) <= 2, kept
    assert "runs.ect.options.q: 3.217" in said


def test_the_workloads_own_file_follows_only_where_it_was_the_same(project):
    shipped = project / "workloads" / "digits.yaml"
    adopt("ect_schedule", project)
    assert shipped.read_bytes() == (project / "params.yaml").read_bytes()
    shipped.write_text(TEXT, encoding="utf-8")
    said = "\n".join(adopt("ect_schedule", project))
    assert shipped.read_text(encoding="utf-8") == TEXT
    assert "workloads/digits.yaml differs from params.yaml and stays as it is" in said


def test_adopting_twice_changes_nothing_and_says_so(project):
    first = adopt("ect_schedule", project)
    once = (project / "params.yaml").read_bytes()
    second = adopt("ect_schedule", project)
    assert (project / "params.yaml").read_bytes() == once
    assert first[0].startswith("params.yaml changed: runs.ect.options.P_mean: -0.4, runs.ect.options.q: 3.217")
    assert "workloads/digits.yaml changed in the same way" in first
    assert second == ["params.yaml holds these values already: " + first[0].partition(": ")[2]]


def test_an_equal_number_stays_as_it_was_written():
    assert changed(TEXT, {"train": {"lr": 0.0004}}) == TEXT


def test_it_says_what_the_values_are_worth(project):
    """Also where that is nothing: the user decides."""
    folder = project / "reports" / "digits" / "tune" / "ect_schedule"
    search = {"name": "ect_schedule", "base": "ect", "metric": "fd", "best": BEST, "importance": {}, "trials": []}
    compared = [{"seed": 11 + k, "before": 1.0 + 0.1 * k, "after": 0.8 + 0.11 * k} for k in range(5)]
    (folder / "trials.json").write_text(json.dumps({**search, "confirmed": compared}), encoding="utf-8")
    said = "fd is 15% lower on the mean of 5 seeds, better on 5: a significant gain (paired t-test"
    assert said in adopt("ect_schedule", project)[-1]


def test_new_sections_are_made_on_one_line():
    change = {"runs": {"ctm": {"train": {"ema": {"tuned": {"power_std": 0.08}}, "eval_ema": "tuned"}}}}
    lines = [line for line in changed(TEXT, change).splitlines() if "tuned" in line]
    assert len(lines) == 1
    assert yaml.safe_load(lines[0]) == {"train": {"ema": {"tuned": {"power_std": 0.08}}, "eval_ema": "tuned"}}


@pytest.mark.parametrize("name", ["", "ict_schedule", "ema_width"])
def test_a_search_without_a_result_is_refused(project, name):
    with pytest.raises(ConfigError, match=rf"NAME: expected a search that has run \(ect_schedule\), got '{name}'"):
        adopt(name, project)


def test_values_that_no_longer_fit_leave_the_files_alone(project):
    found = project / "reports" / "digits" / "tune" / "ect_schedule" / "best.yaml"
    found.write_text(yaml.safe_dump({"runs": {"ect": {"options": {"qq": 3}}}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean 'q'"):
        adopt("ect_schedule", project)
    assert (project / "params.yaml").read_text(encoding="utf-8") == TEXT
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "reports", "workloads"]
