"""Addressed randomness: what an address gives does not depend on who asks, in what batch or in what order."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from devices import CUDA
from hypothesis import given
from hypothesis import strategies as st

from cmcore.rng import Draws, NoiseSource, derive_seed, generator, seeded

part = st.one_of(st.integers(-(2**70), 2**70), st.text("ab:019 é", max_size=8))
addresses = st.lists(part, min_size=1, max_size=4)


@given(addresses, addresses)
def test_different_addresses_give_different_seeds(a: list[int | str], b: list[int | str]):
    assert (derive_seed(*a) == derive_seed(*b)) == ([(type(p), p) for p in a] == [(type(p), p) for p in b])
    assert 0 <= derive_seed(*a) < 2**63


def test_a_number_and_its_text_are_different_addresses_but_any_kind_of_integer_is_the_same():
    assert derive_seed(1, "noise") != derive_seed("1", "noise")
    assert derive_seed(7, np.int64(3)) == derive_seed(7, 3)


def test_nearby_addresses_are_unrelated():
    draws = torch.stack([torch.randn(1000, generator=generator(0, "noise", k)) for k in range(20)])
    correlation = torch.corrcoef(draws).fill_diagonal_(0).abs().max()
    # Of 190 pairs with standard error 1/sqrt(1000), the largest is 5 standard errors off with probability 1e-4.
    assert correlation < 5 / 1000**0.5


@given(st.integers(1, 40), st.data())
def test_rows_of_the_global_batch_do_not_depend_on_the_split(batch: int, data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(1, batch), max_size=4)) | {0, batch})
    whole = Draws(3, 128, batch)
    parts = [Draws(3, 128, batch, slice(low, high)) for low, high in pairwise(cuts)]
    for name in ("normal", "uniform"):
        split = torch.cat([getattr(one, name)((2, 3), stream="x") for one in parts])
        assert torch.equal(split, getattr(whole, name)((2, 3), stream="x"))


def test_a_stream_repeats_and_differs_from_other_streams_steps_and_seeds():
    here = Draws(1, 64, 32)
    assert torch.equal(here.normal(stream="noise"), here.normal(stream="noise"))
    others = [Draws(1, 96, 32), Draws(2, 64, 32)]
    assert not any(torch.equal(other.normal(stream="noise"), here.normal(stream="noise")) for other in others)
    assert not torch.equal(here.normal(stream="level"), here.normal(stream="noise"))


def test_draws_have_their_distribution_and_precision():
    draws = Draws(1, 0, 40_000)
    normal, uniform = draws.normal(stream="a"), draws.uniform(stream="b")
    assert (normal.dtype, uniform.dtype) == (torch.float32, torch.float64)
    # Standard errors: 1/sqrt(n), sqrt(2/n) for the variance, 1/sqrt(12 n) for the uniform mean; five of each.
    assert abs(normal.mean()) < 5 / 200
    assert abs(normal.var() - 1) < 5 * 2**0.5 / 200
    assert abs(uniform.mean() - 0.5) < 5 / 200 / 12**0.5
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_dropout_repeats_its_mask_and_leaves_the_global_generator_alone():
    draws, ones = Draws(1, 64, 8, slice(0, 4)), torch.ones(4, 100)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with draws.dropout():
        first = [torch.nn.functional.dropout(ones, 0.5) for _ in range(2)]
    with draws.dropout(), torch.no_grad():
        second = [torch.nn.functional.dropout(ones, 0.5) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.equal(first[0], first[1])
    for other in (Draws(1, 72, 8, slice(0, 4)), Draws(1, 64, 8, slice(4, 8)), Draws(2, 64, 8, slice(0, 4))):
        with other.dropout():
            assert not torch.equal(torch.nn.functional.dropout(ones, 0.5), first[0])


def test_threads_that_seed_the_global_generator_do_not_disturb_each_other():
    expected, got = {}, {}
    for address in (1, 2):
        with seeded(address):
            expected[address] = torch.rand(2)
    inside, done = threading.Event(), threading.Event()

    def second() -> None:
        inside.wait(10)
        with seeded(2):
            got[2] = torch.rand(2)
        done.set()

    other = threading.Thread(target=second)
    other.start()
    with seeded(1):
        first = torch.rand(1)
        inside.set()
        assert not done.wait(0.2)
        got[1] = torch.cat([first, torch.rand(1)])
    other.join(10)
    assert all(torch.equal(got[address], expected[address]) for address in (1, 2))


@pytest.mark.parametrize("device", [CUDA])
def test_dropout_repeats_its_mask_on_the_accelerator(device: str):
    draws, ones = Draws(1, 64, 8, device=device), torch.ones(8, 100, device=device, requires_grad=True)
    with draws.dropout():
        first = torch.nn.functional.dropout(ones, 0.5)
    with draws.dropout(), torch.no_grad():
        second = torch.nn.functional.dropout(ones, 0.5)
    assert torch.equal(first, second)


def test_a_generated_image_has_the_same_noise_in_any_batch():
    together = NoiseSource(5, range(6))
    parts = [NoiseSource(5, [0, 1]), NoiseSource(5, np.arange(2, 6))]
    for shape in [(1, 4, 4), (3,)]:
        assert torch.equal(together.normal(shape), torch.cat([one.normal(shape) for one in parts]))
    assert torch.equal(together.integers(10), torch.cat([one.integers(10) for one in parts]))
    assert not torch.equal(NoiseSource(6, [0]).normal((4,)), NoiseSource(5, [0]).normal((4,)))
