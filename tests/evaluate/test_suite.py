"""The whole evaluation: one pass, records with provenance, files that read back."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cmcore.diffusion.words import Words
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.records import INCEPTION_DIGEST, MetricRecord, Source
from cmcore.evaluate.reference import kept_rows, load_reference, reference, store_features, store_published
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from cmcore.evaluate.suite import evaluate_samples

CONFIG = EvalConfig(
    samples=120,
    scan_samples=60,
    snapshot_samples=60,
    batch=50,
    bootstrap=3,
    kid_subsets=4,
    kid_size=50,
    score_splits=2,
    reference=ClassifierConfig(width=8, features=6, images=3000, batch=20, lr=0.02),
)
EVERY = {"fd_infinity", "density", "coverage", "authenticity", "memorised", "nearest"}
SOURCE = Source(
    workload="stripes",
    run="edm",
    method="edm",
    fingerprint="f" * 16,
    sampler="heun",
    nfe=35,
    ema="slow",
    images=1000,
    seed=1,
)


@dataclass
class Images:
    images: np.ndarray
    labels: np.ndarray
    classes: int
    digest: str = "d" * 64
    captions: np.ndarray | None = None
    words: Words | None = None


@pytest.fixture(scope="module")
def data() -> Images:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 150)
    wave = 60 * np.cos(np.pi * np.arange(8) / 2)
    pattern = np.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    images = 128 + pattern[:, None] + rng.normal(0, 15, (150, 1, 8, 8))
    return Images(images.clip(0, 255).astype(np.uint8), labels, 2)


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return reference(data, CONFIG, "stripes", folder), folder


def by_metric(records):
    return {record.metric: record for record in records}


def test_files_read_back_to_the_same_reference(built):
    made, folder = built
    assert {p.name for p in folder.iterdir()} == {
        "extractor.safetensors",
        "features.npy",
        "moments.npz",
        "reference.json",
    }
    loaded = load_reference(folder)
    assert (loaded.extractor.name, loaded.digest) == (made.extractor.name, "d" * 64)
    assert torch.equal(loaded.features, made.features)
    assert torch.equal(loaded.moments.cov, made.moments.cov)


def test_description_holds_accuracy_and_the_gaussian_baseline(built):
    described = json.loads((built[1] / "reference.json").read_text())
    assert described["extractor"]["accuracy"]["held_out"] > 0.9
    assert described["extractor"]["name"] == built[0].extractor.name
    records = by_metric(MetricRecord.from_json(data) for data in described["baseline"])
    assert set(records) == {"fd", "kid", "precision", "recall", "score", *EVERY}
    baseline = records["fd"]
    assert (baseline.provenance.run, baseline.provenance.samples) == ("gaussian_pixels", 120)
    assert baseline.value > 5 * described["halves"] > 0


def test_a_half_of_the_images_stands_for_fresh_ones(built):
    anchors = by_metric(
        MetricRecord.from_json(data) for data in json.loads((built[1] / "reference.json").read_text())["anchors"]
    )
    assert set(anchors) == {"fd", "kid", "precision", "recall", "score", *EVERY}
    described = json.loads((built[1] / "reference.json").read_text())
    assert anchors["fd"].value == pytest.approx(described["halves"], rel=1e-12)
    assert anchors["fd_infinity"].value < anchors["fd"].value
    assert anchors["memorised"].value == 0
    assert {(a.provenance.run, a.provenance.samples, a.provenance.reference_count) for a in anchors.values()} == {
        ("half", 75, 75)
    }


def test_test_images_are_measured_against_and_measured_themselves(data, tmp_path):
    train = replace(data, images=data.images[:100], labels=data.labels[:100])
    test = replace(data, images=data.images[100:], labels=data.labels[100:], digest="e" * 64)
    made = reference(train, CONFIG, "stripes", tmp_path, test=test)
    loaded = load_reference(tmp_path)
    assert (loaded.test_digest, loaded.test.count) == ("e" * 64, 50)
    samples = torch.from_numpy(255 - data.images[:120])
    records = by_metric(evaluate_samples(samples.split(40), [loaded], SOURCE, CONFIG, every=True))
    expected = frechet_distance(
        Moments.of(made.extractor(samples)), Moments.of(made.extractor(torch.from_numpy(test.images)))
    )
    assert records["fd_test"].value == pytest.approx(expected, rel=1e-4)
    assert records["fd_test"].value != records["fd"].value
    p = records["fd_test"].provenance
    assert (p.reference_digest, p.reference_count, p.samples) == ("e" * 64, 50, 120)
    anchors = [
        MetricRecord.from_json(found) for found in json.loads((tmp_path / "reference.json").read_text())["anchors"]
    ]
    of_test = by_metric(record for record in anchors if record.provenance.run == "test")
    assert of_test["fd"].provenance.samples == 50
    assert of_test["memorised"].value == 0
    assert "fd_test" not in of_test


def test_fewer_metrics_unless_all_are_asked_for(built, data):
    plain = by_metric(evaluate_samples(torch.from_numpy(data.images).split(40), [built[0]], SOURCE, CONFIG))
    every = by_metric(evaluate_samples(torch.from_numpy(data.images).split(40), [built[0]], SOURCE, CONFIG, every=True))
    assert set(every) - set(plain) == EVERY - {"memorised", "nearest"}
    assert all(every[name] == record for name, record in plain.items())
    assert every["authenticity"].value == 0, "the data itself is all copies"


def test_written_bytes_are_the_same_the_second_time(built, data, tmp_path):
    reference(data, CONFIG, "stripes", tmp_path)
    for path in built[1].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_data_itself_is_a_perfect_sample(built, data):
    made, _ = built
    records = by_metric(evaluate_samples(torch.from_numpy(data.images).split(40), [made], SOURCE, CONFIG))
    assert records["fd"].value == pytest.approx(0, abs=1e-3 * made.moments.cov.trace().item())
    assert (records["precision"].value, records["recall"].value) == pytest.approx((1.0, 1.0), abs=0.02)
    assert abs(records["kid"].value) < 4 * records["kid"].spread / CONFIG.kid_subsets**0.5
    assert 1.7 < records["score"].value <= 2
    provenance = records["fd"].provenance
    assert (provenance.samples, provenance.reference_count, provenance.run) == (150, 150, "edm")
    assert provenance.extractor_digest == made.extractor.digest
    assert records["fd"].name == f"fd_{made.extractor.name}"


def test_samples_pass_once_and_serve_every_reference(built, data, tmp_path):
    made, _ = built
    handed_out = []

    def samples():
        for index in range(3):
            handed_out.append(index)
            yield torch.from_numpy(255 - data.images[40 * index : 40 * (index + 1)])

    class Official:
        """The same features under the digest of the published Inception weights."""

        name, dim, digest = "inception", made.extractor.dim, INCEPTION_DIGEST + "0" * 56
        fidelity = True

        def __call__(self, images):
            return 2 * made.extractor(images)

        def logits(self, features):
            return None

    other = store_features(data, Official(), CONFIG, tmp_path)
    reloaded = load_reference(tmp_path, Official(), "d" * 64)
    assert torch.equal(reloaded.features, other.features)
    records = evaluate_samples(samples(), [made, reloaded], SOURCE, CONFIG)
    assert handed_out == [0, 1, 2]
    values = {record.name: record.value for record in records}
    assert values["fid"] == pytest.approx(4 * values[f"fd_{made.extractor.name}"], rel=1e-6)
    assert "score_inception" not in values
    expected = frechet_distance(Moments.of(made.extractor(torch.from_numpy(255 - data.images[:120]))), made.moments)
    assert values[f"fd_{made.extractor.name}"] == pytest.approx(expected, rel=1e-5)


def test_unlabelled_images_fall_back_to_a_random_network(data, tmp_path):
    unlabelled = replace(data, classes=0, labels=np.zeros(0, np.int64))
    made = reference(unlabelled, CONFIG, "stripes", tmp_path)
    assert made.extractor.name.startswith("random_conv_")
    described = json.loads((tmp_path / "reference.json").read_text())
    assert described["extractor"]["kind"] == "random"
    assert {data["metric"] for data in described["baseline"]} == {"fd", "kid", "precision", "recall", *EVERY}
    assert load_reference(tmp_path).extractor.name == made.extractor.name


def test_of_many_images_a_random_choice_of_features_is_kept_and_the_moments_of_all(built, data, tmp_path):
    made, _ = built
    few = store_features(data, made.extractor, replace(CONFIG, kept=60, shard=40, batch=17), tmp_path)
    rows = kept_rows(150, 60)
    assert len(set(rows.tolist())) == 60
    assert max(rows) > 140, "from the whole set, which may be sorted by class"
    torch.testing.assert_close(few.features, made.features[rows])
    torch.testing.assert_close(few.moments.cov, made.moments.cov)
    assert few.moments.count == 150
    records = by_metric(evaluate_samples(torch.from_numpy(data.images).split(40), [few], SOURCE, CONFIG))
    counts = {metric: record.provenance.reference_count for metric, record in records.items()}
    assert (counts["fd"], counts["kid"], counts["precision"]) == (150, 60, 60)


def test_published_moments_serve_as_a_reference(built, data, tmp_path):
    made, _ = built
    np.savez(tmp_path / "theirs.npz", mu=made.moments.mean.numpy(), sigma=made.moments.cov.numpy())
    store_published(tmp_path / "theirs.npz", made.extractor.dim, tmp_path / "reference")
    loaded = load_reference(tmp_path / "reference", made.extractor, "d" * 64)
    batches = torch.from_numpy(255 - data.images).split(40)
    records = by_metric(evaluate_samples(batches, [loaded], SOURCE, CONFIG))
    assert set(records) == {"fd", "score"}
    assert "No KID, precision and recall" in loaded.absent
    assert "theirs.npz" in loaded.absent
    own = by_metric(evaluate_samples(torch.from_numpy(255 - data.images).split(40), [made], SOURCE, CONFIG))
    assert (records["fd"].value, records["score"].value) == (own["fd"].value, own["score"].value)
    provenance = records["fd"].provenance
    assert (provenance.reference_count, provenance.reference_digest) == (0, loaded.digest)
    assert loaded.digest not in ("d" * 64, "")


def test_no_samples_and_a_foreign_extractor_are_refused(built, tmp_path):
    made, folder = built
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate_samples([], [made], SOURCE, CONFIG)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made.extractor.kind = "other_cnn"
    made.extractor.save(tmp_path / "extractor.safetensors")
    made.extractor.kind = "stripes_cnn"
    with pytest.raises(ValueError, match=r"reference\.json is about stripes_cnn_.*holds other_cnn_"):
        load_reference(tmp_path)
