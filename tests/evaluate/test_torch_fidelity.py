"""The formulae against torch-fidelity's, on the same features and through its own pipeline."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from cmcore.edge.inception import load_inception
from cmcore.evaluate.collect import collect
from cmcore.evaluate.features import FeatureExtractor, NetworkExtractor
from cmcore.evaluate.kernel import kid
from cmcore.evaluate.manifold import manifold
from cmcore.evaluate.records import MetricRecord, Source
from cmcore.evaluate.score import classifier_score
from cmcore.evaluate.settings import EvalConfig, InceptionConfig
from cmcore.evaluate.suite import Reference, evaluate_samples
from cmcore.layers.classifier import Shape, build_classifier
from cmcore.torchvision_ops import import_torchvision

try:
    import_torchvision()
    import torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
except ImportError as error:
    pytest.skip(f"{error.name} is not installed (the extra 'metrics')", allow_module_level=True)

SOURCE = Source(
    workload="noise", run="r", method="m", fingerprint="f", sampler="s", nfe=1, ema="e", images=1, seed=1
)  # fmt: skip


def pair(count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn((2, count, dim), generator=torch.Generator().manual_seed(count)).unbind()
    return x, 1.2 * y + 0.1


def test_kernel_distance():
    x, y = pair(300, 16)
    theirs = kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=300, verbose=False)
    ours = kid(x, y, subsets=1, size=300, seed=0).value
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(k):
    fake, real = pair(400, 6)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=k, save_cpu_ram=False, verbose=False)
    ours = manifold(real, fake, k)
    assert (ours.precision.value, ours.recall.value) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert ours.precision.value != pytest.approx(ours.recall.value, abs=0.01)


def test_score():
    logits, _ = pair(500, 10)
    theirs = isc_features_to_metric(3 * logits, splits=1, shuffle=False)
    assert classifier_score(3 * logits) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


def pictures(count: int, size: int, high: int) -> torch.Tensor:
    """Noise on a colour that differs from image to image."""
    rng = np.random.default_rng(high)
    colours = rng.integers(0, high, (count, 3, 1, 1))
    return torch.from_numpy((colours + rng.integers(-50, 50, (count, 3, size, size))).clip(0, 255).astype(np.uint8))


class Ours(NetworkExtractor):
    """A small network of ours, with class scores, whose values are to be compared with torch-fidelity's."""

    fidelity = True


@pytest.mark.filterwarnings("ignore")  # of torch-fidelity's own calls
def test_whole_pipeline_with_our_extractor():
    """calculate_metrics with our network registered as a custom extractor gives the suite's records, to 1e-3."""
    net = build_classifier(Shape(3, 16, 10, 8, 12), seed=0)
    net.head.weight.data *= 50  # class scores that vary between images
    ours = Ours(net, "ours")

    class Registered(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, input):
            found = {"features": ours(input), "logits": ours.logits(ours(input))}
            return tuple(found[name] for name in self.features_list)

    torch_fidelity.register_feature_extractor(ours.name, Registered)
    fake, real = pictures(200, 16, 200), pictures(200, 16, 255)
    theirs = torch_fidelity.calculate_metrics(
        input1=_Images(fake),
        input2=_Images(real),
        feature_extractor=ours.name,
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        kid_subsets=7,
        kid_subset_size=60,
        isc_splits=3,
        batch_size=64,
        cuda=False,
        cache=False,
        verbose=False,
    )
    config = EvalConfig(
        samples=200, scan_samples=200, snapshot_samples=200, shard=70, kid_subsets=7, kid_size=60, score_splits=3,
        bootstrap=0,
    )  # fmt: skip
    records = evaluate_samples(fake.split(50), [_reference(ours, real)], SOURCE, config)
    _compare(records, theirs, "fd")


def _reference(extractor: FeatureExtractor, real: torch.Tensor) -> Reference:
    seen = collect(real.split(50), [extractor], shard=60, keep=1000)[0]
    return Reference(extractor, seen.moments, seen.features, "d" * 64)


def _compare(records: list[MetricRecord], theirs: dict[str, float], distance: str) -> None:
    found = {record.metric: record for record in records}
    pairs = {
        "frechet_inception_distance": found[distance].value,
        "kernel_inception_distance_mean": found["kid"].value,
        "kernel_inception_distance_std": found["kid"].spread,
        "precision": found["precision"].value,
        "recall": found["recall"].value,
        "inception_score_mean": found["score"].value,
        "inception_score_std": found["score"].spread,
    }
    assert {name: pytest.approx(value, rel=1e-3) for name, value in pairs.items()} == {n: theirs[n] for n in pairs}
    assert theirs["inception_score_mean"] > 1.01
    assert 0 < theirs["recall"] < 1 or 0 < theirs["precision"] < 1


class _Unfilled:
    """Makes torch-fidelity's network keep its initialisation instead of loading weights."""

    def load_state_dict(self, *_args, **_kwargs):
        pass


def stand_in(path: Path) -> None:
    """A weight file for torch-fidelity's Inception network, whose features and class scores vary between images."""
    network = type("Network", (_Unfilled, FeatureExtractorInceptionV3), {})
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    net = network("stand-in", ["2048"], feature_extractor_weights_path=empty)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        net.fc.weight *= 50
    torch.save(net.state_dict(), path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_inception_metrics_equal_those_of_torch_fidelitys_public_interface(tmp_path):
    """The same images and the same weight file through calculate_metrics and through our evaluation, to 1e-3."""
    stand_in(tmp_path / "weights.pth")
    fake, real = pictures(18, 8, 200), pictures(18, 8, 255)
    theirs = torch_fidelity.calculate_metrics(
        input1=_Images(fake), input2=_Images(real), feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(tmp_path / "weights.pth"), fid=True, kid=True, isc=True, prc=True,
        feature_layer_prc="2048", kid_subsets=5, kid_subset_size=9, isc_splits=3, batch_size=6, cuda=False,
        cache=False, verbose=False,
    )  # fmt: skip
    extractor = load_inception(InceptionConfig(path=str(tmp_path / "weights.pth"))).extractor
    assert extractor is not None
    config = EvalConfig(
        samples=18, scan_samples=18, snapshot_samples=18, shard=8, kid_subsets=5, kid_size=9, score_splits=3,
        bootstrap=0,
    )  # fmt: skip
    records = evaluate_samples(fake.split(5), [_reference(extractor, real)], SOURCE, config)
    _compare(records, theirs, "fd")  # generated weights are not those that define FID


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]
