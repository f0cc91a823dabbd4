"""Extractors that come with the project: their digests, and their features on other processors."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shipped import WORKLOADS

from cmcore.assemble.project import load_project
from cmcore.closure import ROOT
from cmcore.config import ConfigError
from cmcore.evaluate.classifier import judge
from cmcore.evaluate.settings import ClassifierConfig
from cmcore.evaluate.shipped import shipped_extractor, shipped_source
from cmcore.layers.classifier import SHIPPED, shipped_file

DIGESTS = {"digits": "4a0598e6", "fashion-mnist": "c273be7f"}
FEATURES = """
import sys, numpy, torch
from cmcore.evaluate.shipped import shipped_extractor, shipped_source
torch.set_num_threads(int(sys.argv[1]))
side = {"digits": 8, "fashion-mnist": 28}[sys.argv[3]]
images = torch.randint(0, 256, (64, 1, side, side), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
numpy.save(sys.argv[2], shipped_extractor(sys.argv[3])(images).numpy())
"""


@pytest.mark.parametrize("workload", DIGESTS)
def test_shipped_weights_are_those_of_the_committed_distances(workload: str):
    assert shipped_extractor(workload).digest.startswith(DIGESTS[workload])
    assert {path.name for path in shipped_file(workload).parent.glob("shipped.*.safetensors")} == {
        shipped_file(name).name for name in DIGESTS
    }


def features(out: Path, threads: int, workload: str, **environment: str) -> np.ndarray:
    subprocess.run(
        [sys.executable, "-c", FEATURES, str(threads), str(out), workload],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=True,
    )
    return np.load(out)


@pytest.mark.parametrize("workload", DIGESTS)
def test_features_agree_between_thread_counts_and_instruction_sets(tmp_path: Path, workload: str):
    plain = features(tmp_path / "a.npy", 1, workload)
    assert plain.std() > 0.1
    for index, (threads, capability) in enumerate([(2, ""), (1, "default"), (1, "avx2")]):
        environment = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        other = features(tmp_path / f"{index}.npy", threads, workload, **environment)
        np.testing.assert_allclose(other, plain, rtol=0, atol=1e-5)


def test_another_workload_is_told_which_there_are():
    with pytest.raises(
        ConfigError, match="'shipped' is there for digits, fashion-mnist; expected '' to train one for 'mine'"
    ):
        shipped_extractor("mine")


def test_the_shipped_classifier_reads_the_digits_that_it_did_not_train_on():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)[:, None]
    accuracy = judge(shipped_extractor("digits"), images, data.target, ClassifierConfig(), classes=10)
    assert accuracy["held_out"] > 0.97


def test_a_workload_of_the_same_family_uses_the_same_extractor():
    assert shipped_extractor("digits-guided").digest == shipped_extractor("digits").digest
    assert shipped_source("fashion-mnist") == "fashion-mnist"
    with pytest.raises(ConfigError, match="for 'digitsmine'"):
        shipped_source("digitsmine")


@pytest.mark.parametrize("file", WORKLOADS, ids=lambda file: file.stem)
def test_every_workload_that_asks_for_one_has_one(file: Path):
    sections = load_project(file).sections
    assert sections.eval.extractor != SHIPPED or shipped_source(file.stem)
