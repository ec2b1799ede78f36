"""The MLP of ``ppo1/mlp_policy.py``: its shapes, its initialisation, what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import nn

from ppo1_lightning import ConfigurationError, MlpPolicy
from ppo1_lightning.policies.spaces import distribution_for

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (11,), np.float32)
BOX = spaces.Box(-1, 1, (3,))


def weights(policy: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in policy.named_modules() if isinstance(m, nn.Linear)}


def test_parameter_shapes_of_the_original():
    """Two networks of 2 x 64, a mean of 3, a value, one log std per action."""
    shapes = [tuple(p.shape) for p in MlpPolicy(OBSERVATIONS, BOX).parameters()]
    network = [(64, 11), (64,), (64, 64), (64,)]
    assert sorted(shapes) == sorted([*network, *network, (3, 64), (3,), (1, 64), (1,), (3,)])


@pytest.mark.parametrize(
    ("action_space", "num_parameters", "learned_std"),
    [
        (BOX, 6, True),
        (spaces.Discrete(4), 4, False),
        (spaces.MultiDiscrete([3, 4]), 7, False),
        (spaces.MultiBinary(3), 3, False),
    ],
    ids=["Box", "Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_outputs(action_space: Space[Any], num_parameters: int, learned_std: bool):
    policy = MlpPolicy(OBSERVATIONS, action_space)
    state = object()
    parameters, values, state_after = policy(torch.randn(5, 11), state)
    assert parameters.shape == (5, num_parameters)
    assert values.shape == (5,)
    assert state_after is state
    assert (policy.log_std is not None) is learned_std


def test_initialisation():
    policy = MlpPolicy(OBSERVATIONS, BOX)
    layers = weights(policy)
    assert len(layers) == 6
    for name, layer in layers.items():
        norms = layer.weight.norm(dim=1)  # of each output's incoming weights
        expected = 0.01 if name == "action_head" else 1.0
        torch.testing.assert_close(norms, torch.full_like(norms, expected))
        assert (layer.bias == 0).all()
    assert policy.log_std is not None
    assert (policy.log_std == 0).all()
    # Normal directions: of every sign, and another one for each layer.
    assert all((layer.weight > 0).float().mean().sub(0.5).abs() < 0.25 for layer in layers.values())
    assert not torch.equal(layers["trunk.0"].weight, layers["value_trunk.0"].weight)


def test_forward_equals_numpy():
    policy = MlpPolicy(OBSERVATIONS, BOX, hidden_size=8, num_layers=3, normalize_observations=False)
    nn.init.constant_(policy.log_std, -0.5)  # type: ignore[arg-type]
    for layer in weights(policy).values():
        nn.init.normal_(layer.bias)
    x = np.random.default_rng(0).standard_normal((5, 11))

    def network(trunk: str, head: str) -> Any:
        layers = [m for name, m in weights(policy).items() if name.startswith((trunk, head))]
        h = x
        for i, layer in enumerate(layers):
            h = h @ layer.weight.detach().numpy().T.astype(float) + layer.bias.detach().numpy()
            h = np.tanh(h) if i < 3 else h
        assert len(layers) == 4
        return h

    parameters, values, _ = policy(torch.from_numpy(x).float(), None)
    expected = np.concatenate([network("trunk", "action_head"), np.full((5, 3), -0.5)], 1)
    np.testing.assert_allclose(parameters.detach(), expected, atol=1e-6)
    np.testing.assert_allclose(values.detach(), network("value_trunk", "value_head")[:, 0], 1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_separate_and_shared_trunks(shared: bool):
    """Only with a shared trunk does the value's gradient reach what the action depends on."""
    policy = MlpPolicy(OBSERVATIONS, BOX, shared_trunk=shared)
    policy(torch.randn(5, 11), None).values.sum().backward()
    assert policy.action_head.weight.grad is None
    first = policy.trunk.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert (first.weight.grad is not None) is shared
    assert (policy.value_trunk is None) is shared


def test_normalizer():
    policy = MlpPolicy(OBSERVATIONS, BOX)
    plain = MlpPolicy(OBSERVATIONS, BOX, normalize_observations=False)
    assert plain.observation_normalizer is None
    assert policy.observation_normalizer is not None
    observations = torch.randn(1000, 11) * 3 + 20
    policy.observation_normalizer.update(observations)
    plain.load_state_dict(policy.state_dict(), strict=False)
    z = (observations - observations.mean(0)) / observations.std(0, correction=0)
    ours, theirs = policy(observations, None), plain(z.clamp(-5, 5), None)
    torch.testing.assert_close(ours.values, theirs.values, atol=1e-3, rtol=0)


def test_arguments_rebuild_the_policy():
    options = {"hidden_size": 5, "num_layers": 3, "shared_trunk": True}
    policy = MlpPolicy(OBSERVATIONS, BOX, **options, normalize_observations=False)
    again = MlpPolicy(OBSERVATIONS, BOX, **policy.arguments)
    again.load_state_dict(policy.state_dict())
    observations = torch.randn(4, 11)
    assert torch.equal(policy(observations, None).values, again(observations, None).values)
    assert policy.arguments == {**options, "normalize_observations": False}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), {}, r"images .* need policy=auto"),
        (spaces.Box(-np.eye(2, dtype=np.float32), 1), {}, "expected a one-dimensional Box"),
        (spaces.Discrete(16), {}, "expected a one-dimensional Box"),
        (OBSERVATIONS, {"hidden_size": 0}, "hidden_size=0 .*at least 1"),
        (OBSERVATIONS, {"num_layers": 1.5}, "num_layers=1.5 is not a whole number"),
        (OBSERVATIONS, {"num_layers": "2"}, "num_layers='2' is not a whole number"),
    ],
)
def test_errors_are_one_line(space: Space[Any], options: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message) as error:
        MlpPolicy(space, BOX, **options)
    assert "\n" not in str(error.value)


MASKED = spaces.Dict([("vector", OBSERVATIONS), ("action_mask", spaces.Box(0, 1, (5,)))])


def masked_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of `MASKED` and what they allow, at least one choice each."""
    stream = torch.Generator().manual_seed(0)
    mask = torch.rand(count, 5, generator=stream) < 0.5
    mask[torch.arange(count), torch.randint(5, (count,), generator=stream)] = True
    return torch.cat([torch.randn(count, 11, generator=stream), mask.float()], 1), mask


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_choices_are_those_of_the_allowed_ones_alone(normalize: bool):
    """As torch's own distribution over the allowed ones has it, renormalised."""
    policy = MlpPolicy(MASKED, spaces.Discrete(5), normalize_observations=normalize)
    plain = MlpPolicy(OBSERVATIONS, spaces.Discrete(5), normalize_observations=normalize)
    with torch.no_grad():
        policy.action_head.weight.mul_(100)
    rows, mask = masked_rows(200)
    if policy.observation_normalizer is not None:
        policy.observation_normalizer.update(rows)
    plain.load_state_dict(policy.state_dict())
    parameters, values, _ = policy(rows)
    logits, plain_values, _ = plain(rows[:, :11])
    torch.testing.assert_close(values, plain_values)
    ours = distribution_for(spaces.Discrete(5))
    actions = ours.sample(parameters, ours.noise(200))
    modes = ours.mode(parameters)
    entropies, log_probs = ours.entropy(parameters), ours.log_prob(parameters, actions)
    kl = ours.kl(parameters, 0.5 * parameters.where(mask, 2 * parameters))
    for i in range(200):
        allowed = mask[i].nonzero().flatten()
        reference = torch.distributions.Categorical(logits=logits[i, allowed])
        halved = torch.distributions.Categorical(logits=0.5 * logits[i, allowed])
        assert mask[i, actions[i]]
        assert modes[i] == allowed[logits[i, allowed].argmax()]
        chosen = (allowed == actions[i]).nonzero().squeeze()
        torch.testing.assert_close(log_probs[i], reference.log_prob(chosen), atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies[i], reference.entropy(), atol=1e-5, rtol=0)
        expected = torch.distributions.kl_divergence(reference, halved)
        torch.testing.assert_close(kl[i], expected, atol=1e-5, rtol=0)


def test_where_nothing_is_allowed_no_number_is_lost():
    """As in some environments after an episode's last step; the action there is not taken."""
    policy = MlpPolicy(MASKED, spaces.Discrete(5))
    parameters, _, _ = policy(torch.zeros(1, 16))
    ours = distribution_for(spaces.Discrete(5))
    assert ours.entropy(parameters).item() == pytest.approx(np.log(5))
    rows = parameters.detach().expand(5000, -1)
    counts = ours.sample(rows, ours.noise(5000)).bincount(minlength=5)
    assert counts.min() > 900
    ours.entropy(parameters).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("action_space", [BOX, spaces.Discrete(4), spaces.MultiDiscrete([2, 4])])
def test_a_mask_that_does_not_fit_is_refused(action_space: Space[Any]):
    with pytest.raises(ConfigurationError, match="action_mask has 5 numbers and cannot mask"):
        MlpPolicy(MASKED, action_space)
