"""The loss terms on literal arrays, and rows that must be silent."""

from __future__ import annotations

import math

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from ppo1_lightning import PPO, MlpPolicy
from ppo1_lightning.functional.losses import clipped_surrogate, value_error, weighted_mean
from ppo1_lightning.rollouts.segment import Minibatch


def test_clipped_surrogate():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1, 1.0], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0, 3.0])
    terms = clipped_surrogate(ratio, advantages, torch.tensor(0.2))
    torch.testing.assert_close(terms, torch.tensor([1.2, 0.5, -1.5, -0.8, 2.2, 3.0]))
    (gradient,) = torch.autograd.grad(terms.sum(), ratio)
    # None where clipping took away the incentive; at ratio 1, where every update starts, it is A.
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 3.0]))


def test_value_error_is_the_plain_square():
    values, returns = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 4.0, 2.0])
    error = value_error(values, returns, torch.tensor([9.0, 9.0, 9.0]), None)
    assert error.tolist() == [0, 4, 9]


def test_value_clip_takes_the_larger_error():
    #                 within  clipped is worse  clipped is better  moved away
    values = torch.tensor([1.25, 3.0, 3.0, 0.0], requires_grad=True)
    returns = torch.tensor([2.0, 3.0, 0.0, 2.0])
    old = torch.tensor([1.0, 1.0, 1.0, 1.0])
    error = value_error(values, returns, old, torch.tensor(0.5))
    # Clipped values: 1.25, 1.5, 1.5, 0.5
    assert error.tolist() == [0.5625, 2.25, 9.0, 4.0]
    (gradient,) = torch.autograd.grad(error.sum(), values)
    assert gradient.tolist() == [-1.5, 0.0, 6.0, -4.0]


def test_weighted_mean():
    terms = torch.tensor([1.0, 2.0, 3.0, 100.0])
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0])
    torch.testing.assert_close(weighted_mean(terms, weights), torch.tensor(2.0))
    assert weighted_mean(terms, torch.zeros(4)) == 0
    shares = [weighted_mean(terms[s], weights[s]) for s in (slice(1), slice(1, 4))]
    torch.testing.assert_close(torch.stack(shares).sum(), torch.tensor(2.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weight_0_silences_a_term_that_is_not_finite(value: float):
    terms = torch.tensor([1.0, value], requires_grad=True)
    mean = weighted_mean(terms, torch.tensor([0.5, 0.0]))
    assert mean == 0.5
    (gradient,) = torch.autograd.grad(mean, terms)
    assert gradient.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("advantages", math.nan), ("returns", math.inf), ("old_log_probs", -1000.0)],
)
def test_weight_0_silences_what_led_to_its_term(field: str, value: float):
    """Also the gradient that reaches the network is finite (a ratio of exp(1000) is not)."""
    ppo = PPO(MlpPolicy, observation_space=Box(-1, 1, (3,)), action_space=Discrete(4))
    ppo.configure_model()
    rows = Minibatch(
        observations=torch.zeros(2, 3),
        actions=torch.tensor([1, 2]),
        advantages=torch.tensor([1.0, 2.0]),
        returns=torch.tensor([3.0, 4.0]),
        old_values=torch.zeros(2),
        old_dist_params=torch.zeros(2, 4),
        old_log_probs=torch.full((2,), math.log(0.25)),
        weights=torch.tensor([1.0, 0.0]),
        starts=torch.zeros(2, dtype=torch.bool),
        state=torch.zeros(2, 0),
    )
    spoilt = getattr(rows, field).clone()
    spoilt[1] = value
    results = []
    for minibatch in (rows, rows._replace(**{field: spoilt})):
        dist_params = torch.zeros(2, 4, requires_grad=True)
        values = torch.zeros(2, requires_grad=True)
        loss = sum(ppo.loss_terms(minibatch, dist_params, values).values(), torch.zeros(()))
        results.append((loss.detach(), *torch.autograd.grad(loss, [dist_params, values])))
    torch.testing.assert_close(results[0], results[1])
