"""The reader of captions: what it learns, and how often samples show what their captions say."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmcore.diffusion.inputs import NO_LABEL
from cmcore.diffusion.words import Words
from cmcore.evaluate.classifier import as_read, right_rows
from cmcore.evaluate.collect import collect
from cmcore.evaluate.records import ReferenceFacts, Source
from cmcore.evaluate.reference import facts_of, load_reference, reference
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from cmcore.evaluate.suite import Reference, measure

WORDS = Words(("dark", "light", "stripes"), 2)
CONFIG = EvalConfig(
    samples=60, batch=50, bootstrap=2, kid_subsets=2, kid_size=50, nearest=0,
    reference=ClassifierConfig(width=8, features=8, images=3000, batch=20, lr=0.02, shift=0.0),
)  # fmt: skip
SOURCE = Source(
    workload="w", run="edm", method="edm", fingerprint="f" * 16, sampler="heun", nfe=3, ema="slow", images=9, seed=1
)


@dataclass
class Captioned:
    images: np.ndarray
    captions: np.ndarray
    labels: np.ndarray
    words: Words | None = WORDS
    classes: int = 0
    digest: str = "d" * 64


@pytest.fixture(scope="module")
def data() -> Captioned:
    """Dark and light images, of which some have stripes: "dark", "light stripes"."""
    rng = np.random.default_rng(0)
    light, stripes = rng.integers(0, 2, 150), rng.integers(0, 2, 150)
    waves = 25 * np.cos(np.pi * np.arange(8))[None, :, None] * stripes[:, None, None]
    images = (60 + 120 * light[:, None, None] + waves)[:, None].repeat(8, axis=3) + rng.normal(0, 5, (150, 1, 8, 8))
    captions = np.stack([light, np.where(stripes == 1, 2, NO_LABEL)], axis=1)
    return Captioned(images.clip(0, 255).astype(np.uint8), captions, np.zeros(150, np.int64))


@pytest.fixture(scope="module")
def built(data: Captioned, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    folder = tmp_path_factory.mktemp("reference")
    reference(data, CONFIG, "w", folder)
    return load_reference(folder), folder


def test_a_caption_is_right_where_all_of_its_words_are():
    captions = as_read(np.array([[0, 2], [1, NO_LABEL]]))
    assert captions.tolist() == [[1, 3], [2, 0]]
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 1] = logits[0, 1, 3] = logits[1, 0, 2] = logits[1, 1, 3] = 1.0  # of the last, one of two words
    assert right_rows(logits.flatten(1), torch.from_numpy(captions)).tolist() == [True, False]


def test_the_reader_is_the_extractor_and_its_accuracy_is_told(built: tuple[Reference, Path]):
    made, folder = built
    facts = facts_of(folder)
    assert (facts.extractor.kind, made.reads) == ("reader", True)
    assert made.extractor.name.startswith("w_reader_")
    assert facts.extractor.accuracy is not None
    assert facts.extractor.accuracy["held_out"] > 0.95
    assert ReferenceFacts.from_json(facts.to_json()) == facts
    # Of the Gaussian fit and of half of the images, too, a score of classes would mean nothing.
    assert facts.baseline
    assert facts.anchors
    assert "score" not in {record.metric for record in (*facts.baseline, *facts.anchors)}


def test_samples_are_read(data: Captioned, built: tuple[Reference, Path]):
    made, _ = built

    def share(
        images: np.ndarray, first: int = 0, captions: np.ndarray = data.captions
    ) -> tuple[float, float, set[str]]:
        parts = collect([torch.from_numpy(images)], [made.extractor], shard=100, keep=100, device="cpu")

        def told(rows: range) -> Tensor:
            return torch.from_numpy(data.captions[list(rows)])

        records = measure([parts], [made], SOURCE, CONFIG, [first], told=told)
        found = {record.metric: record for record in records}
        record = found["captions"]
        assert record.provenance.samples == len(images)
        return record.value, record.spread, set(found)

    right, _, metrics = share(data.images[:60])
    assert right > 0.95
    assert "score" not in metrics  # the logits of all words are no class scores
    # The numbers of the samples say which captions they were told.
    assert share(data.images[60:120], 60)[0] > 0.95
    captions = data.captions[60:120]
    same = (data.captions[:60] == captions).all(1).mean()
    wrong, spread, _ = share(data.images[60:120], 0)
    assert wrong == pytest.approx(same, abs=0.05)
    assert spread == pytest.approx(math.sqrt(wrong * (1 - wrong) / 60))


def test_without_captions_nothing_is_read(data: Captioned, built: tuple[Reference, Path]):
    made, _ = built
    parts = collect([torch.from_numpy(data.images[:60])], [made.extractor], shard=100, keep=100, device="cpu")
    assert "captions" not in {record.metric for record in measure([parts], [made], SOURCE, CONFIG)}


def test_too_many_words_leave_the_extractor_untrained(data: Captioned, tmp_path: Path):
    many = replace(data, words=Words(tuple(sorted(f"w{k}" for k in range(3000))), 2))
    reference(many, CONFIG, "w", tmp_path)
    assert facts_of(tmp_path).extractor.kind == "random"
