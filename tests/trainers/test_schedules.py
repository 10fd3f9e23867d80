"""KL controller, temperatures and curriculum, step by step."""

import pytest

from trainers.schedules import Curriculum, adaptive_kl_beta, kl_temperature, linear_temperature


@pytest.mark.parametrize(("kl", "expected"), [(0.2, 0.15), (0.1, 0.1), (0.05, 0.1), (0.01, 0.1), (0.005, 0.1 / 1.5)])
def test_beta_moves_only_outside_of_the_target(kl, expected):
    assert adaptive_kl_beta(0.1, kl) == pytest.approx(expected)


def test_beta_stays_within_its_bounds():
    beta = 0.1
    for _ in range(50):
        beta = adaptive_kl_beta(beta, kl=1.0)
    assert beta == 10.0
    for _ in range(50):
        beta = adaptive_kl_beta(beta, kl=0.0)
    assert beta == 0.001


def test_linear_temperature_starts_and_ends_where_it_should():
    assert [linear_temperature(step, 5, 1.0, 0.6) for step in range(6)] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.6])
    assert linear_temperature(0, 1, 1.0, 0.6) == 0.6


def test_temperature_answers_the_kl():
    assert kl_temperature(1.0, 0.5, 0.01, 0.1, factor=1.25) == pytest.approx(0.8)
    assert kl_temperature(1.0, 0.001, 0.01, 0.1, factor=1.25) == pytest.approx(1.25)
    assert kl_temperature(1.0, 0.05, 0.01, 0.1) == 1.0
    assert kl_temperature(0.51, 0.5, 0.01, 0.1) == 0.5
    assert kl_temperature(1.49, 0.0, 0.01, 0.1) == 1.5


def test_curriculum_ends_after_its_share():
    curriculum = Curriculum(top_k=3, share=0.3)
    assert [curriculum.k_at(step, 10) for step in range(5)] == [3, 3, 3, None, None]
    assert Curriculum(None, 0.3).k_at(0, 10) is None
