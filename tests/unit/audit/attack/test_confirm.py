"""The confirmation's level, by exact summation, and its edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from drs_ray.audit.attack.confirm import rival_wins
from drs_ray.certificates.rule import Rule

SIGMAS = {1: (0.5,), 2: (0.5, 0.25)}
SAMPLES = 8


def outcomes(classes: int) -> list[tuple[int, ...]]:
    """All votes of SAMPLES samples."""
    return [o for o in itertools.product(range(SAMPLES + 1), repeat=classes) if sum(o) == SAMPLES]


def multinomial(votes: tuple[int, ...], p: tuple[float, ...]) -> float:
    ways = math.factorial(SAMPLES) / math.prod(map(math.factorial, votes))
    return ways * math.prod(share**count for share, count in zip(p, votes, strict=True))


def lead(p: NDArray[np.float64], vote: str, weights: tuple[float, ...], sigmas: tuple[float, ...]) -> float:
    """Of class 1 over class 0 in the smoothed classifier; p float64 [K, C]."""
    if vote == "mean":
        return float((p[:, 1] - p[:, 0]).sum())
    return float((np.array(weights) * np.array(sigmas) * (ndtri(p[:, 1]) - ndtri(p[:, 0]))).sum())


@pytest.mark.parametrize("level", [0.001, 0.05])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_sub_image_is_confirmed_wrongly_with_at_most_the_level(classes: int, level: float) -> None:
    wins = {o: rival_wins(np.array([o]), 0, 1, SIGMAS[1], Rule(), level) for o in outcomes(classes)}
    assert any(wins.values()) == (level >= 2**-SAMPLES)
    for share in (0.05, 0.2, 0.35, 0.5) if classes == 3 else (0.5,):  # a tie: the worst that is no win
        p = (share, share, 1 - 2 * share)[:classes]
        assert sum(multinomial(o, p) for o, win in wins.items() if win) <= level


@pytest.mark.parametrize("level", [0.01, 0.2])
@pytest.mark.parametrize(
    ("vote", "weights"), [("probit", (1.0, 1.0)), ("probit", (1.0, 3.0)), ("mean", (1.0, 1.0))], ids=str
)
@pytest.mark.parametrize("classes", [2, 3])
def test_two_sub_images_are_confirmed_wrongly_with_at_most_the_level(
    classes: int, vote: str, weights: tuple[float, float], level: float
) -> None:
    sigmas, rule = SIGMAS[2], Rule(vote, weights=None if vote == "mean" else weights)
    kinds = outcomes(classes)
    wins = np.array([[rival_wins(np.array([a, b]), 0, 1, sigmas, rule, level) for b in kinds] for a in kinds])
    assert wins.any()
    shares = (0.02, 0.2, 0.45, 0.5, 0.55, 0.8, 0.98)
    if classes == 2:
        points = [(p, 1 - p) for p in shares]
    else:
        points = [(p, r * (1 - p), (1 - r) * (1 - p)) for p in shares for r in (0.3, 0.9)]
    probability = {p: np.array([multinomial(o, p) for o in kinds]) for p in points}
    tried = 0
    for first, second in itertools.product(points, repeat=2):
        if lead(np.array([first, second]), vote, weights, sigmas) <= 0:
            tried += 1
            assert probability[first] @ wins @ probability[second] <= level
    assert tried > 10


def test_a_clear_win_is_confirmed_and_a_clear_loss_is_not() -> None:
    for sub_images, vote in ((1, "probit"), (2, "probit"), (2, "mean"), (4, "probit")):
        sigmas = (0.5,) * sub_images
        lost, won = np.array([[700, 200, 100]] * sub_images), np.array([[200, 700, 100]] * sub_images)
        assert rival_wins(won, 0, 1, sigmas, Rule(vote), 1e-6)
        assert not rival_wins(lost, 0, 1, sigmas, Rule(vote), 0.5)
        assert not rival_wins(won, 0, 2, sigmas, Rule(vote), 0.5)


def test_no_votes_at_all_confirm_nothing() -> None:
    for sigmas, vote in (((0.5,), "probit"), ((0.5, 0.5), "probit"), ((0.5, 0.5), "mean")):
        nobody = np.array([[0, 0, 1000]] * len(sigmas))
        assert not rival_wins(nobody, 0, 1, sigmas, Rule(vote), 0.5)
    # A sub-image that never votes for the rival: the probit score is -inf there, the mean vote does not mind.
    votes = np.array([[0, 1000, 0], [100, 0, 900]])
    assert not rival_wins(votes, 0, 1, (0.5, 0.5), Rule("probit"), 0.5)
    assert rival_wins(votes, 0, 1, (0.5, 0.5), Rule("mean"), 1e-6)


def test_more_weight_decides() -> None:
    votes = np.array([[450, 550, 0], [550, 450, 0]])
    assert rival_wins(votes, 0, 1, (0.5, 0.5), Rule(weights=(100.0, 1.0)), 0.05)
    assert rival_wins(votes, 1, 0, (0.5, 0.5), Rule(weights=(1.0, 100.0)), 0.05)
    assert not rival_wins(votes, 0, 1, (0.5, 0.5), Rule(), 0.05)
