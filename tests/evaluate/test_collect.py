"""Parts of many images: cut by number, added up in order, and what is kept of them."""

import pytest
import torch

from cmcore.evaluate.collect import Collector, Part, Span, collect, joined, spans
from cmcore.evaluate.moments import Moments


def features(count: int) -> torch.Tensor:
    return 3 + torch.randn((count, 4), generator=torch.Generator().manual_seed(count))


def test_spans_cover_a_range_once():
    assert spans(12, 5) == [Span(0, 5), Span(5, 10), Span(10, 12)]
    assert spans(12, 5, 12) == [Span(12, 17), Span(17, 22), Span(22, 24)]
    assert spans(5, 5) == spans(5, 9) == [Span(0, 5)]


@pytest.mark.parametrize("batch", [1, 7, 10, 25, 64])
def test_batches_leave_no_trace(batch):
    x, expected = features(64), Moments.total(map(Moments.of, features(64).split(10)))
    collector = Collector(10, 30)
    for part in x.split(batch):
        collector.add(part)
    found = collector.part()
    assert torch.equal(found.moments.cov, expected.cov)
    assert torch.equal(found.moments.mean, expected.mean)
    assert torch.equal(found.features, x[:30])
    assert found.moments.count == 64
    torch.testing.assert_close(expected.cov, Moments.of(x).cov)


def test_shards_put_together_are_the_whole_bit_for_bit():
    x = features(64)
    collector = Collector(10, 45)
    collector.add(x)
    whole, parts = collector.part(), []
    for start, stop in spans(64, 10):
        one = Collector(10, max(0, 45 - start))
        one.add(x[start:stop])
        parts.append(one.part())
    again = joined(parts, 45)
    assert torch.equal(again.moments.cov, whole.moments.cov)
    assert torch.equal(again.features, whole.features)
    assert again.features.shape == (45, 4)


def test_every_extractor_sees_every_image_once():
    seen = []

    class Extractor:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, images):
            seen.append(len(images))
            return self.factor * images.float().flatten(1)

    images = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    one, two = collect(iter(images.split(4)), [Extractor(1), Extractor(2)], shard=5, keep=2)  # pyright: ignore
    assert seen == [4, 4, 2, 2]
    assert torch.equal(two.features, 2 * one.features)
    assert isinstance(one, Part)
    torch.testing.assert_close(two.moments.cov, 4 * one.moments.cov)


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        Collector(5, 5).part()
