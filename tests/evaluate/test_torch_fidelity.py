"""The formulae against torch-fidelity's, on the same features and through its own pipeline."""

import numpy as np
import pytest
import torch

from cmcore.edge.torchvision_ops import import_torchvision
from cmcore.evaluate.features import random_extractor
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.kernel import kid
from cmcore.evaluate.manifold import precision_recall
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.score import classifier_score

try:
    import_torchvision()
    import torch_fidelity
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
except ImportError as error:
    pytest.skip(f"{error.name} is not installed (the extra 'metrics')", allow_module_level=True)


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
    ours = precision_recall(real, fake, k)
    assert (ours.precision.value, ours.recall.value) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert ours.precision.value != pytest.approx(ours.recall.value, abs=0.01)


def test_score():
    logits, _ = pair(500, 10)
    theirs = isc_features_to_metric(3 * logits, splits=1, shuffle=False)
    assert classifier_score(3 * logits) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


@pytest.mark.filterwarnings("ignore")  # of torch-fidelity's own calls
def test_whole_pipeline_with_our_extractor():
    """calculate_metrics with our network registered as a custom extractor gives our numbers from the same images."""
    ours = random_extractor(3, 16, width=8, features=12)

    class Registered(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, input):
            return (ours(input),)

    torch_fidelity.register_feature_extractor(ours.name, Registered)
    rng = np.random.default_rng(0)
    fake, real = (torch.from_numpy(rng.integers(0, high, (200, 3, 16, 16), np.uint8)) for high in (200, 255))
    theirs = torch_fidelity.calculate_metrics(
        input1=_Images(fake),
        input2=_Images(real),
        feature_extractor=ours.name,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=200,
        batch_size=64,
        cuda=False,
        cache=False,
        verbose=False,
    )
    x, y = ours(fake), ours(real)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )
    assert kid(x, y, subsets=1, size=200, seed=0).value == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-3
    )
    both = precision_recall(y, x, 3)
    assert (both.precision.value, both.recall.value) == pytest.approx((theirs["precision"], theirs["recall"]), abs=0.01)


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]
