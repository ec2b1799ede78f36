"""Every family against `torch.distributions`, enumeration of all outcomes, and Monte Carlo."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch import distributions as reference

from ppo1_lightning.functional.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)

DISCRETE = [Categorical(4), MultiCategorical((3, 2)), Bernoulli(3)]
ALL = [*DISCRETE, DiagonalGaussian(3)]

discrete = pytest.mark.parametrize("family", DISCRETE, ids=lambda f: type(f).__name__)
every = pytest.mark.parametrize("family", ALL, ids=lambda f: type(f).__name__)


def factors(family: Distribution, parameters: Tensor) -> list[reference.Distribution]:
    """Return torch's distribution of each independent component of an action."""
    match family:
        case DiagonalGaussian(size):
            columns = parameters.unbind(-1)
            pairs = zip(columns[:size], columns[size:], strict=True)
            return [reference.Normal(mean, log_std.exp()) for mean, log_std in pairs]
        case Categorical():
            return [reference.Categorical(logits=parameters)]
        case MultiCategorical(nvec):
            return [reference.Categorical(logits=part) for part in parameters.split(nvec, -1)]
        case Bernoulli():
            return [reference.Bernoulli(logits=column) for column in parameters.unbind(-1)]
    raise TypeError(family)


def log_prob(family: Distribution, parameters: Tensor, actions: Tensor) -> Tensor:
    """Return torch's log probability of actions."""
    columns = [actions] if isinstance(family, Categorical) else actions.unbind(-1)
    pairs = zip(factors(family, parameters), columns, strict=True)
    return torch.stack([factor.log_prob(column.to(parameters)) for factor, column in pairs]).sum(0)


def outcomes(family: Distribution) -> Tensor:
    """Return every action of a discrete family, ``[K, *action_shape]``."""
    match family:
        case Categorical(n):
            return torch.arange(n)
        case MultiCategorical(nvec):
            return torch.tensor(list(itertools.product(*map(range, nvec))))
        case Bernoulli(n):
            return torch.tensor(list(itertools.product((0, 1), repeat=n)), dtype=torch.int8)
    raise TypeError(family)


def parameters_of(family: Distribution, *shape: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, family.num_parameters, generator=stream, dtype=torch.float64)


def noise_of(family: Distribution, *shape: int, seed: int = 1) -> Tensor:
    return family.noise(*shape, generator=torch.Generator().manual_seed(seed))


@every
def test_shapes_and_dtypes(family: Distribution):
    parameters = parameters_of(family, 5, 2).float()
    noise = noise_of(family, 5, 2)
    assert noise.shape == (5, 2, family.noise_size)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    shape, dtype = {
        Categorical: ((), torch.int64),
        MultiCategorical: ((2,), torch.int64),
        Bernoulli: ((3,), torch.int8),
        DiagonalGaussian: ((3,), torch.float32),
    }[type(family)]
    actions = family.sample(parameters, noise)
    for actions in (family.sample(parameters, noise), family.mode(parameters)):
        assert actions.shape == (5, 2, *shape)
        assert actions.dtype == dtype
    for numbers in (
        family.log_prob(parameters, actions),
        family.entropy(parameters),
        family.kl(parameters, -parameters),
    ):
        assert numbers.shape == (5, 2)
        assert numbers.dtype == torch.float32


@every
def test_log_prob_entropy_and_kl_equal_torch(family: Distribution):
    p, q = parameters_of(family, 50, seed=2), parameters_of(family, 50, seed=3)
    actions = family.sample(p, noise_of(family, 50))
    entropies = [factor.entropy() for factor in factors(family, p)]
    pairs = zip(factors(family, p), factors(family, q), strict=True)
    divergences = [reference.kl_divergence(ours, theirs) for ours, theirs in pairs]
    expected = {
        "log_prob": log_prob(family, q, actions),
        "entropy": torch.stack(entropies).sum(0),
        "kl": torch.stack(divergences).sum(0),
    }
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = {
            "log_prob": family.log_prob(q.to(dtype), actions),
            "entropy": family.entropy(p.to(dtype)),
            "kl": family.kl(p.to(dtype), q.to(dtype)),
        }
        torch.testing.assert_close(
            ours, expected, rtol=tolerance, atol=tolerance, check_dtype=False
        )


@discrete
def test_probabilities_of_all_outcomes(family: Distribution):
    """They add up to 1, and entropy, KL and mode are what a sum over all of them gives."""
    p, q = parameters_of(family, seed=4), parameters_of(family, seed=5)
    actions = outcomes(family)
    log_p = family.log_prob(p.expand(len(actions), -1), actions)
    log_q = family.log_prob(q.expand(len(actions), -1), actions)
    torch.testing.assert_close(log_p.exp().sum().item(), 1.0)
    torch.testing.assert_close(family.entropy(p), -(log_p.exp() * log_p).sum())
    torch.testing.assert_close(family.kl(p, q), (log_p.exp() * (log_p - log_q)).sum())
    assert torch.equal(family.mode(p), actions[log_p.argmax()])


@discrete
def test_sampled_frequencies(family: Distribution):
    """The frequency of each joint outcome is its probability, within five standard errors."""
    draws = 200_000
    parameters = parameters_of(family, seed=6)
    sampled = family.sample(parameters.float().expand(draws, -1), noise_of(family, draws))
    actions = outcomes(family)
    same = sampled.reshape(draws, 1, -1) == actions.reshape(1, len(actions), -1)
    frequencies = same.all(-1).double().mean(0)
    expected = log_prob(family, parameters.expand(len(actions), -1), actions).exp()
    errors = (expected * (1 - expected) / draws).sqrt()
    assert ((frequencies - expected).abs() < 5 * errors).all()


def test_sampled_moments_of_the_gaussian():
    family, draws = DiagonalGaussian(2), 200_000
    parameters = torch.tensor([1.0, -2.0, 0.5, -1.0])
    actions = family.sample(parameters.expand(draws, -1), noise_of(family, draws)).double()
    std = torch.tensor([0.5, -1.0], dtype=torch.float64).exp()
    z = (actions - torch.tensor([1.0, -2.0])) / std
    assert (z.mean(0).abs() < 5 / draws**0.5).all()
    torch.testing.assert_close(z.T.cov(), torch.eye(2).double(), atol=0.02, rtol=0)
    within = (z.abs() < 1).double().mean(0)
    torch.testing.assert_close(within, torch.full((2,), 0.682689).double(), atol=0.006, rtol=0)


@every
def test_an_action_is_a_function_of_its_own_noise(family: Distribution):
    parameters, noise = parameters_of(family, 30).float(), noise_of(family, 30)
    whole = family.sample(parameters, noise)
    parts = [family.sample(parameters[i : i + 10], noise[i : i + 10]) for i in (0, 10, 20)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(noise, noise_of(family, 30))
    assert not torch.equal(noise, noise_of(family, 30, seed=2))


@every
def test_mode_has_the_largest_log_prob(family: Distribution):
    parameters = parameters_of(family, 100)
    best = family.log_prob(parameters, family.mode(parameters))
    other = family.log_prob(parameters, family.sample(parameters, noise_of(family, 100)))
    assert (best >= other).all()


@discrete
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_extreme_logits_stay_finite(family: Distribution, size: float):
    signs = parameters_of(family, 20).sign().float()
    p = (size * signs).requires_grad_()
    q = -p.detach()
    actions = family.sample(p, noise_of(family, 20))
    values = [family.log_prob(p, actions), family.entropy(p), family.kl(p, q)]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), p)
    for tensor in (*values, gradient):
        assert tensor.isfinite().all()
    assert (values[1] >= 0).all()


@every
def test_kl_to_itself_is_zero(family: Distribution):
    parameters = parameters_of(family, 20).float()
    assert family.kl(parameters, parameters).abs().max() < 1e-6
