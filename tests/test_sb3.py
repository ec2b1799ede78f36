"""``algo=sb3`` against Stable-Baselines3 itself: one rollout of its, its update and ours."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from golden_recordings import whole_rollout
from recipe_replay import as_minibatches, fit, replayed

from ppo1_lightning import PPO, Rollout

pytestmark = pytest.mark.peers
sb3: Any = pytest.importorskip("stable_baselines3", reason="the extra `peers` is not installed")
pytest.importorskip("stable_baselines3.common.env_util")

NUM_ENVS, NUM_STEPS = 2, 128
PARTS = {
    "trunk": "mlp_extractor.policy_net",
    "value_trunk": "mlp_extractor.value_net",
    "action_head": "action_net",
    "value_head": "value_net",
    "log_std": "log_std",
}


def theirs_after_a_rollout(env: str) -> Any:
    """Return their PPO with their defaults, and a full buffer."""
    envs = sb3.common.env_util.make_vec_env(env, NUM_ENVS, seed=1)
    model = sb3.PPO("MlpPolicy", envs, n_steps=NUM_STEPS, seed=1)
    _, callback = model._setup_learn(10**6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=NUM_STEPS)
    return model


def name_of(parameter: str) -> str:
    part, *rest = parameter.split(".")
    return ".".join([PARTS[part], *rest])


def rollout_of(model: Any, ours: PPO) -> Rollout:
    """Return what is in their buffer; V(final observation) is in the rewards already."""
    buffer = model.rollout_buffer
    names = ("observations", "actions", "rewards", "values", "episode_starts")
    observations, actions, rewards, values, starts = (
        torch.from_numpy(getattr(buffer, name).copy()) for name in names
    )
    with torch.no_grad():
        last = model.policy.predict_values(torch.from_numpy(model._last_obs)).T
        dist_params = ours.policy(observations.flatten(0, 1), None)[0].unflatten(0, rewards.shape)
    over = torch.from_numpy(model._last_episode_starts)[None]
    terminated = torch.cat([starts[1:].bool(), over.bool()])
    discrete = ours.distribution.num_parameters == ours.distribution.noise_size
    return whole_rollout(
        observations=observations,
        actions=actions.squeeze(-1).long() if discrete else actions,
        rewards=rewards,
        values=torch.cat([values, last]),
        dist_params=dist_params,
        terminated=terminated,
        policy_version=0,
        fraction_spent=0.0,
    )


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("path", [False, "trace"])
def test_the_update_is_theirs(env: str, path: Any) -> None:
    model = theirs_after_a_rollout(env)
    recipe = ["env=gymnasium", f"env.id={env}", "algo=sb3"]
    ours = replayed(recipe, path, model.observation_space, model.action_space)
    start = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.policy.named_parameters():
            kinds = (parameter, start[name_of(name)])
            if parameter.ndim == 2:  # both are orthogonal, with the same gain
                kinds = tuple(map(torch.linalg.svdvals, kinds))
            torch.testing.assert_close(*kinds, rtol=1e-5, atol=1e-5)
            parameter.copy_(start[name_of(name)])
    rollout = rollout_of(model, ours)
    orders, draw = [], np.random.permutation

    def permutation(count: int) -> Any:
        orders.append(draw(count))
        return orders[-1]

    with patch.object(np.random, "permutation", permutation):
        model.train()
    assert len(orders) == model.n_epochs == ours.update_epochs
    assert ours.minibatch_size == model.batch_size
    theirs = as_minibatches(orders, model.batch_size)
    # one environment after the other; ours are one step after the other
    ours.orders = [theirs % NUM_STEPS * NUM_ENVS + theirs // NUM_STEPS]
    fit(ours, [rollout])
    for mine, name in zip(ours.estimates, ("advantages", "returns"), strict=True):
        buffer = getattr(model.rollout_buffer, name).reshape(NUM_ENVS, NUM_STEPS).T
        np.testing.assert_allclose(mine, buffer, rtol=1e-5, atol=1e-5)
    after = dict(model.policy.named_parameters())
    for name, parameter in ours.policy.named_parameters():
        expected = after[name_of(name)]
        assert (expected - start[name_of(name)]).abs().max() > 1e-4
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6, msg=name)
