"""The published numbers: complete, sourced, and refused when they are not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cmcore import plugins
from cmcore.config import ConfigError, load_yaml
from cmcore.report.captions import run_title
from cmcore.report.published import DATASETS, FILE, Number, published, unranked
from cmcore.report.readers import Inputs, read_runs

NUMBERS = published()


def value(dataset: str, label: str, nfe: int, *, conditional: bool = False, by: str = "", metric: str = "FID") -> float:
    found = [
        n.value
        for n in NUMBERS
        if (n.row.dataset, n.row.label, n.nfe, n.row.metric) == (dataset, label, nfe, metric)
        and n.row.by == by
        and (n.row.conditional == conditional or dataset != "cifar10")
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("dataset", "label", "expected"),
    [
        ("cifar10", "EDM", {35: 1.97}),
        ("cifar10", "PD, original", {1: 9.12, 2: 4.51, 4: 3.0}),
        ("cifar10", "CD, LPIPS", {1: 3.55, 2: 2.93}),
        ("cifar10", "CT, LPIPS", {1: 8.70, 2: 5.83}),
        ("cifar10", "iCT", {1: 2.83, 2: 2.46}),
        ("cifar10", "iCT-deep", {1: 2.51, 2: 2.24}),
        ("cifar10", "ECT, one hour on one A100", {2: 2.73}),
        ("cifar10", "ECT, 100k iterations", {1: 4.54, 2: 2.20}),
        ("cifar10", "ECT, 400k iterations", {1: 3.60, 2: 2.11}),
        ("cifar10", "TCM", {1: 2.46, 2: 2.05}),
        ("cifar10", "sCT", {1: 2.85, 2: 2.06}),
        ("cifar10", "sCD", {1: 3.66, 2: 2.52}),
        ("cifar10", "CTM", {1: 1.98, 2: 1.87}),
        ("cifar10", "CTM without the GAN", {1: 5.19, 18: 3.00}),
        ("imagenet64", "EDM, deterministic", {79: 2.44}),
        ("imagenet64", "CD, LPIPS", {1: 6.20, 2: 4.70, 3: 4.32}),
        ("imagenet64", "CT, LPIPS", {1: 13.0, 2: 11.1}),
        ("imagenet64", "iCT", {1: 4.02, 2: 3.20}),
        ("imagenet64", "ECT-XL, batch 1024", {1: 2.49, 2: 1.67}),
        ("imagenet64", "TCM-XL", {1: 2.20, 2: 1.62}),
        ("imagenet64", "CTM", {1: 1.92, 2: 1.73}),
        ("imagenet64", "sCT-XL", {1: 2.04, 2: 1.48}),
        ("imagenet64", "sCD-XL", {1: 2.44, 2: 1.66}),
        ("imagenet64", "Multistep CD", {1: 3.20, 2: 1.90}),
        ("lsun_bedroom256", "CD, LPIPS", {1: 7.80, 2: 5.22}),
        ("lsun_bedroom256", "CT, LPIPS", {1: 16.0, 2: 7.85}),
        ("lsun_cat256", "CD, LPIPS", {1: 11.0, 2: 8.84}),
        ("lsun_cat256", "CT, LPIPS", {1: 20.7, 2: 11.7}),
        ("imagenet512", "sCT-XXL", {1: 4.29, 2: 3.76}),
        ("imagenet512", "sCD-XXL", {1: 2.28, 2: 1.88}),
        ("imagenet512", "sCD-XXL with VSD", {1: 2.16, 2: 1.89}),
    ],
)
def test_values_are_the_papers(dataset: str, label: str, expected: dict[int, float]) -> None:
    assert {nfe: value(dataset, label, nfe) for nfe in expected} == expected


def test_conditional_and_adversarial_are_told_apart() -> None:
    assert value("cifar10", "CTM", 1, conditional=True) == 1.73
    assert value("cifar10", "EDM", 35, conditional=True) == 1.79
    assert {n.row.method for n in NUMBERS if n.row.adversarial} == {"ctm"}
    assert all(n.row.conditional for n in NUMBERS if n.row.dataset.startswith("imagenet"))
    assert not any(n.row.conditional for n in NUMBERS if n.row.dataset.startswith("lsun"))


def test_all_datasets_and_our_methods_have_numbers() -> None:
    assert {n.row.dataset for n in NUMBERS} == set(DATASETS)
    heads = {(n.row.method, n.nfe) for n in NUMBERS if n.row.headline and n.row.dataset == "cifar10"}
    assert heads >= {(method, nfe) for method in ("cd", "ct", "ict", "ect", "sct", "scd") for nfe in (1, 2)} | {
        ("edm", 35)
    }
    assert all(not n.row.by or n.row.method == "pd" for n in NUMBERS if n.row.headline)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{n.row.dataset}-{n.row.label}-{n.nfe}")
def test_every_number_says_where_it_comes_from(number: Number) -> None:
    assert number.source.arxiv or number.source.repository
    assert number.cite
    assert number.row.init
    assert 0.5 < number.value < 30 or number.row.metric != "FID"
    for text in (number.row.note, number.row.read_in, number.row.table, number.row.label):
        assert not re.search(r"\[[VPSMD]\b", text)  # tags of the working notes mean nothing to a reader


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("1.97", "EDM"),
        ("2.01", "1.97"),
        ("10.70", "15.39"),
        ("15.39", "10.70"),
        ("10.53", "3.55"),
        ("2.92", "3.60"),
        ("3.23", "2.85"),
    ],
)
def test_disagreements_stand_beside_the_numbers(text: str, needle: str) -> None:
    notes = [n.row.note + n.row.label for n in NUMBERS if n.text == text]
    assert any(needle in note for note in notes), notes


def test_images_seen_follow_from_iterations_and_batch() -> None:
    images = {n.row.label: n.row.images for n in NUMBERS if n.row.dataset == "cifar10"}
    assert images["CD, LPIPS"] == images["CT, LPIPS"] == 800_000 * 512
    assert images["iCT"] == 400_000 * 1024
    assert images["ECT, 400k iterations"] == images["sCT, batch 128, 400k iterations"] == 400_000 * 128
    assert images["sCT"] == 0


ROW = 'dataset: cifar10, source: s, method: cd, label: L, init: random, known: paper, nfe: [1], value: ["2.0"]'
GOOD = 'sources: {s: {title: T, arxiv: "2303.01469"}}\ngroups:\n  - rows:\n    - {' + ROW + "}\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: s, ", "", r"groups\[0\].rows\[0\].source: is missing"),
        ("source: s,", "source: other,", r"rows\[0\].source: expected one of s, got 'other'"),
        ("known: paper", "known: rumour", r"rows\[0\].known: expected one of paper, repository"),
        ("known: paper", "known: secondary", r"rows\[0\].read_in: expected where a secondary number was read"),
        ("dataset: cifar10", "dataset: mnist", r"rows\[0\].dataset: expected one of"),
        ("nfe: [1]", "nfe: [1, 2]", r"rows\[0\].value: expected one value for each of 2 nfe"),
        ('value: ["2.0"]', "value: [2.0]", r"rows\[0\].value\[0\]: expected text"),
        ('value: ["2.0"]', 'value: ["-2"]', r"rows\[0\].value\[0\]: expected a positive decimal"),
        ("label: L", "labell: L", "did you mean 'label'"),
        (', arxiv: "2303.01469"', "", r"sources.s.arxiv: expected an arXiv identifier or a repository"),
        ("2303.01469", "23-1", "sources.s.arxiv: expected NNNN.NNNNN"),
        ("sources", "quellen", r"expected the keys \['groups', 'sources'\]"),
        ("{" + ROW + "}", "{" + ROW + "}\n    - {" + ROW + "}", "same number stands more than once"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(GOOD)
    assert [n.value for n in published(path)] == [2.0]
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        published(path)


def test_a_second_headline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    row = "    - {" + ROW + ", headline: true}\n"
    path.write_text(GOOD.split("    - {")[0] + row + row.replace("label: L", "label: M"))
    with pytest.raises(ConfigError, match="same headline stands more than once"):
        published(path)


def test_no_source_is_left_unused() -> None:
    assert set(load_yaml(FILE)["sources"]) - {n.row.source for n in NUMBERS} == set()


def test_unranked_methods_are_methods_that_are_there():
    assert unranked()
    assert set(unranked()) <= set(plugins.available("cmcore.methods"))


def test_a_run_that_is_called_after_a_variant_has_a_title(synthetic: Inputs) -> None:
    run = next(run for run in read_runs(synthetic) if run.facts.run == "ect")
    called = {
        name: run_title(replace(run, facts=replace(run.facts, run=name, method=method)))
        for name, method in (("ect", "ect"), ("lsd", "flowmap"), ("reflow_distilled", "reflow"), ("mine", "ect"))
    }
    assert called == {"ect": "ECT", "lsd": "LSD", "reflow_distilled": "Reflow, distilled", "mine": "mine"}
