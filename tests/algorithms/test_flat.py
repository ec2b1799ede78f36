"""Derivatives with respect to flat parameters against dense ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor, nn
from torch.func import functional_call

from ppo1_lightning import MlpPolicy
from ppo1_lightning.algorithms.flat import FlatParameters
from ppo1_lightning.functional.distributions import Categorical
from ppo1_lightning.policies.spaces import distribution_for

SPACES = [Box(-1, 1, (2,)), Discrete(3), MultiDiscrete([2, 3]), MultiBinary(2)]


def tiny_policy(action_space: Any) -> tuple[MlpPolicy, Tensor, FlatParameters]:
    """Return a policy, observations ``[6, 3]`` and the parameters that choose actions."""
    torch.manual_seed(0)
    policy = MlpPolicy(Box(-1, 1, (3,)), action_space, hidden_size=4, num_layers=2)
    with torch.no_grad():
        for parameter in policy.parameters():  # the action head starts near 0
            parameter.copy_(0.5 * torch.randn_like(parameter))
    acting = [p for name, p in policy.named_parameters() if not name.startswith("value")]
    return policy, torch.randn(6, 3), FlatParameters(acting)


def mean_kl(policy: nn.Module, action_space: Any, observations: Tensor) -> Tensor:
    """Return the mean of KL(old || new) for a new policy equal to the old one."""
    parameters, _, _ = policy(observations, None)
    return distribution_for(action_space).kl(parameters.detach(), parameters).mean()


def columns_of(product: Any, size: int) -> Tensor:
    return torch.stack([product(column) for column in torch.eye(size)], 1)


def test_get_and_set() -> None:
    first, second = nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.tensor([9.0]))
    flat = FlatParameters([second, first])
    vector = flat.get()
    assert vector.tolist() == [9, 0, 1, 2, 3, 4, 5]
    assert not vector.requires_grad
    addresses = first.data_ptr(), second.data_ptr()
    flat.set(10 * vector)
    assert first.tolist() == [[0, 10, 20], [30, 40, 50]]
    assert second.tolist() == [90]
    assert (first.data_ptr(), second.data_ptr()) == addresses
    assert vector.tolist() == [9, 0, 1, 2, 3, 4, 5]  # a copy


def test_layout_in_memory_does_not_matter() -> None:
    kernel = nn.Parameter(torch.arange(16.0).view(1, 4, 2, 2).to(memory_format=torch.channels_last))
    flat = FlatParameters([kernel])
    assert flat.get().tolist() == [*range(16)]
    flat.set(flat.get() + 1)
    assert flat.gradient(kernel.square().sum()).tolist() == [2 * (i + 1) for i in range(16)]


def test_gradient() -> None:
    x, y, unused = (nn.Parameter(torch.tensor(v)) for v in ([1.0, 2.0], [3.0], [7.0]))
    flat = FlatParameters([y, unused, x])
    loss = (x.square().sum() * y).sum()
    gradient = flat.gradient(loss)
    assert gradient.tolist() == [5, 0, 6, 12]
    assert not gradient.requires_grad
    assert flat.gradient(loss).tolist() == [5, 0, 6, 12]  # the graph is kept


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_products_of_the_fisher_matrix(space: Any) -> None:
    """They are the Hessian of the mean KL that autograd writes out, at the old policy."""
    policy, observations, flat = tiny_policy(space)
    names = [n for n, _ in policy.named_parameters() if not n.startswith("value")]
    old = policy(observations, None)[0].detach()
    sizes = [p.numel() for p in flat.parameters]

    def kl_of(vector: Tensor) -> Tensor:
        pieces = zip(names, vector.split(sizes), flat.parameters, strict=True)
        tensors = {name: piece.view_as(parameter) for name, piece, parameter in pieces}
        parameters = functional_call(policy, tensors, (observations, None))[0]
        return distribution_for(space).kl(old, parameters).mean()

    expected = torch.autograd.functional.hessian(kl_of, flat.get())
    product = flat.hessian(mean_kl(policy, space, observations))
    found = columns_of(product, sum(sizes))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.linalg.eigvalsh(found).max() > 0.1


def test_fisher_matrix_is_the_covariance_of_the_score() -> None:
    """F = E[grad log p(a) grad log p(a)^T], here over all actions of each observation."""
    policy, observations, flat = tiny_policy(Discrete(3))
    expected = torch.zeros(len(flat.get()), len(flat.get()))
    for observation in observations:
        logits = policy(observation[None], None)[0][0]
        for action, probability in enumerate(logits.softmax(0).tolist()):
            score = flat.gradient(Categorical(3).log_prob(logits, torch.tensor(action)))
            expected += probability * torch.outer(score, score) / len(observations)
    product = flat.hessian(mean_kl(policy, Discrete(3), observations))
    found = columns_of(product, len(expected))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_hessian_of_a_known_function() -> None:
    x, y = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([5.0]))
    product = FlatParameters([x, y]).hessian((x**3 * y).sum())  # [[6 x y, 3 x^2], [3 x^2, 0]]
    assert columns_of(product, 2).tolist() == [[60, 12], [12, 0]]
    assert not product(torch.ones(2)).requires_grad


def test_a_product_at_other_parameters_is_refused() -> None:
    policy, observations, flat = tiny_policy(Discrete(3))
    product = flat.hessian(mean_kl(policy, Discrete(3), observations))
    vector = flat.get()
    product(vector)
    flat.set(2 * vector)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product(vector)
