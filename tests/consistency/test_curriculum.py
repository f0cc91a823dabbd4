"""Curricula against the values that the papers' formulas give."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmcore.consistency.curriculum import ct_decay, ct_points, ect_stage, ect_target_level, ict_points

# k of K = 800k iterations: N for s1 = 150 and, where known, for s1 = 200 (arXiv 2303.01469, App. C, s0 = 2).
CT_K = 800_000
CT_POINTS = [(0, 2, 2), (1_000, 6, 8), (10_000, 17, 23), (100_000, 54, 72), (400_000, 107, 143), (CT_K, 151, 201)]
# q, stage: r at t = 0.1, 0.5, 1, 5, 80 with k = 8, b = 1 (arXiv 2406.14548).
ECT_T = [0.1, 0.5, 1.0, 5.0, 80.0]
ECT_R = [
    (2, 0, [0, 0, 0, 2.36614, 40]),
    (2, 1, [0, 0, 0.212117, 3.68307, 60]),
    (2, 3, [0.069999, 0.374365, 0.803029, 4.67077, 75]),
    (2, 7, [0.0981249, 0.492148, 0.987689, 4.97942, 79.6875]),
]


@pytest.mark.parametrize(("k", "to_150", "to_200"), CT_POINTS)
def test_ct_points(k: int, to_150: int, to_200: int):
    assert (ct_points(k / CT_K, 2, 150), ct_points(k / CT_K, 2, 200)) == (to_150, to_200)


@given(st.integers(2, 20), st.integers(0, 400), st.floats(0, 1), st.floats(0, 1))
def test_ct_points_grow_from_s0_to_one_more_than_s1(s0: int, more: int, a: float, b: float):
    s1, (low, high) = s0 + more, sorted((a, b))
    assert ct_points(0.0, s0, s1) == s0
    assert ct_points(1.0, s0, s1) == s1 + 1
    assert s0 <= ct_points(low, s0, s1) <= ct_points(high, s0, s1) <= s1 + 1


def test_ct_decay():
    # At the start N = s0: the paper's mu(k) begins at mu0, and with s0 = 2, mu0 = 0.9 it ends at 0.9^(2/151). The
    # official codes count the gaps, N - 1, and begin at .81 on CIFAR-10 and .9025 on ImageNet 64.
    assert ct_decay(2, 2, 0.9) == pytest.approx(0.9, rel=1e-12)
    assert ct_decay(1, 2, 0.9) == pytest.approx(0.81, rel=1e-12)
    assert ct_decay(1, 2, 0.95) == pytest.approx(0.9025, rel=1e-12)
    assert ct_decay(151, 2, 0.9) == pytest.approx(0.9 ** (2 / 151), rel=1e-12)
    decays = [ct_decay(n, 2, 0.95) for n in range(2, 202)]
    assert decays == sorted(decays)


def test_ict_points_double_after_every_eighth_of_the_published_run():
    K = 400_000
    gaps = [10, 20, 40, 80, 160, 320, 640, 1280]
    for stage, gap in enumerate(gaps):
        assert ict_points(stage * 50_000, K, 10, 1280) == gap + 1
        assert ict_points((stage + 1) * 50_000 - 1, K, 10, 1280) == gap + 1


@given(st.integers(1, 20), st.integers(0, 3000), st.integers(20, 5000))
def test_ict_points_are_the_formula_of_the_paper(s0: int, more: int, K: int):
    s1 = s0 + more
    K_prime = math.floor(K / (math.log2(s1 // s0) + 1))
    ks = range(0, K, max(1, K // 50))
    points = [ict_points(k, K, s0, s1) for k in ks]
    assert points == [min(s0 * 2 ** (k // K_prime), s1) + 1 for k in ks]
    if K > 100:  # long enough for the last doubling before the end
        assert ict_points(K - 1, K, s0, s1) > s1 / 2


def test_ict_reaches_s1_where_the_ratio_is_no_power_of_two():
    assert ict_points(9_999, 10_000, 10, 1000) == 1001


def test_ict_survives_runs_of_a_few_steps():
    assert [ict_points(k, 3, 10, 1280) for k in range(3)] == [11, 21, 41]
    assert ict_points(10**9, 3, 10, 1280) == 1281


@pytest.mark.parametrize(("q", "stage", "expected"), ECT_R)
def test_ect_target_level_table(q: float, stage: int, expected: list[float]):
    r = ect_target_level(torch.tensor(ECT_T, dtype=torch.float64), stage, q=q, k=8, b=1)
    torch.testing.assert_close(r, torch.tensor(expected, dtype=torch.float64), rtol=6e-6, atol=0)


def test_a_stage_of_q_4_is_two_of_q_2():
    t = torch.logspace(-3, 2, 200, dtype=torch.float64)
    for stage, other in [(0, 1), (1, 3), (3, 7)]:
        torch.testing.assert_close(
            ect_target_level(t, stage, q=4, k=8, b=1), ect_target_level(t, other, q=2, k=8, b=1), rtol=1e-14, atol=0
        )


@given(st.integers(0, 7), st.floats(1.1, 16), st.floats(0, 20), st.floats(0.1, 5))
def test_ect_target_stays_below_t_and_moves_up_with_the_stages(stage: int, q: float, k: float, b: float):
    t = torch.logspace(-3, 3, 50, dtype=torch.float64)
    r, later = (ect_target_level(t, s, q=q, k=k, b=b) for s in (stage, stage + 1))
    assert ((r >= 0) & (r < t) & (later >= r)).all()
    limited = ect_target_level(t, stage, q=q, k=k, b=b, ratio_limit=0.5)
    torch.testing.assert_close(limited, torch.minimum(r, t / 2), rtol=1e-14, atol=0)


def test_ect_stages_are_equal_parts():
    stages = [ect_stage(k / 80, 8) for k in range(81)]
    assert stages == [min(k // 10, 7) for k in range(81)]
