"""``algo=cleanrl_*`` against CleanRL's own scripts: its rollouts, its updates and ours."""

from __future__ import annotations

import copy
import functools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recordings import whole_rollout
from gymnasium.spaces import Box, Discrete, Space
from lightning import Callback
from recipe_replay import as_minibatches, fit, replayed
from torch import Tensor, nn

from benchmarks.run import peer_python
from ppo1_lightning import Rollout

PYTHON = peer_python("cleanrl")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.heavy,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="no CleanRL: python -m benchmarks.setup_peers cleanrl"
    ),
]
UPDATES = 10  # of their run, of which the first ones are recorded
Arrays = dict[str, np.ndarray]


@dataclass
class Recipe:
    """A script with small sizes, the same as overrides, and the names of modules: ours, theirs."""

    script: str
    iterations: int  # In a CNN, rounding soon turns single ReLUs on and off: from 1e-7 to 1e-6.
    arguments: str
    overrides: list[str]
    spaces: tuple[Space[Any], Space[Any]]
    names: dict[str, str]

    def parameters(self, arrays: Arrays, iteration: int) -> dict[str, Tensor]:
        """Return theirs before an iteration's update, by our names."""
        found = {}
        for ours, theirs in self.names.items():
            prefix = f"{iteration}/parameters/{theirs}"
            for name in (n for n in arrays if n == prefix or n.startswith(f"{prefix}.")):
                found[ours + name.removeprefix(prefix)] = torch.from_numpy(arrays[name])
        if "trunk.linear.weight" in found:  # ours reads features as (height, width, channels)
            weight = found["trunk.linear.weight"].unflatten(1, (64, 7, 7))
            found["trunk.linear.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
        return found


RECIPES = {
    "atari": Recipe(
        "ppo_atari_envpool",
        1,
        f"--env-id=Breakout-v5 --num-envs=4 --num-steps=32 --total-timesteps={128 * UPDATES}",
        ["env=breakout", "algo=cleanrl_atari", "algo.minibatch_size=32"],
        (Box(0, 255, (4, 84, 84), np.uint8), Discrete(4)),
        {
            **{f"trunk.convolutions.{i}": f"network.{i}" for i in (0, 2, 4)},
            "trunk.linear": "network.7",
            "action_head": "actor",
            "value_head": "critic",
        },
    ),
    "mujoco": Recipe(
        "ppo_continuous_action",
        3,
        "--env-id=Pendulum-v1 --num-steps=512 --num-minibatches=8 "
        f"--total-timesteps={512 * UPDATES}",
        [
            "env=gymnasium",
            "env.id=Pendulum-v1",
            "algo=cleanrl_mujoco",
            "algo.normalize_observations=false",  # what it recorded is normalised
            "algo.normalize_returns=false",
        ],
        (Box(-np.inf, np.inf, (3,), np.float32), Box(-2, 2, (1,), np.float32)),
        {
            **{f"trunk.{i}": f"actor_mean.{i}" for i in (0, 2)},
            **{f"value_trunk.{i}": f"critic.{i}" for i in (0, 2)},
            "action_head": "actor_mean.4",
            "value_head": "critic.4",
            "log_std": "actor_logstd",
        },
    ),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Arrays]:
    """Return what a script learned from in its first iterations, and its parameters."""

    @functools.cache
    def record(name: str) -> Arrays:
        folder, recipe = tmp_path_factory.mktemp(name), RECIPES[name]
        scripts = PYTHON.parent.parent.glob(f"lib/*/site-packages/cleanrl/{recipe.script}.py")
        recorder = Path(__file__).with_name("cleanrl_recorder.py")
        words = [recorder, "recorded.npz", str(recipe.iterations), next(scripts), "--cuda=false"]
        command = [PYTHON, *words, *recipe.arguments.split()]
        subprocess.run(command, cwd=folder, check=True, timeout=200, stdout=subprocess.DEVNULL)
        return dict(np.load(folder / "recorded.npz"))

    return record


def rollout_of(recipe: Recipe, arrays: Arrays, iteration: int, policy: nn.Module) -> Rollout:
    """Return a rollout of theirs; ``policy`` is the one that acted."""

    def field(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"{iteration}/{name}"])

    observation_space, action_space = recipe.spaces
    discrete = isinstance(action_space, Discrete)
    observations = field("obs").to(torch.from_numpy(observation_space.sample()).dtype)
    with torch.no_grad():
        dist_params = policy(observations.flatten(0, 1), None)[0]
    return whole_rollout(
        observations=observations,
        actions=field("actions").long() if discrete else field("actions"),
        rewards=field("rewards"),
        values=torch.cat([field("values"), field("next_value")]),
        dist_params=dist_params.unflatten(0, observations.shape[:2]),
        terminated=torch.cat([field("dones")[1:], field("next_done")[None]]).bool(),
        policy_version=iteration,
        fraction_spent=iteration / UPDATES,
    )


def load(policy: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Take parameters over, all of them."""
    own = dict(policy.named_parameters())
    assert own.keys() == parameters.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(parameters[name].view_as(parameter))


class Compare(Callback):
    """Looks at every parameter and estimate after each update."""

    def __init__(self, recipe: Recipe, arrays: Arrays) -> None:
        self.recipe, self.arrays = recipe, arrays

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        iteration = pl_module.counters.iterations - 1
        for mine, name in zip(pl_module.estimates, ("advantages", "returns"), strict=True):
            theirs = self.arrays[f"{iteration}/{name}"]
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        before, after = (self.recipe.parameters(self.arrays, iteration + i) for i in range(2))
        for name, parameter in pl_module.policy.named_parameters():
            assert (after[name] - before[name]).abs().max() > 1e-5, name
            expected = after[name].view_as(parameter)
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("path", [False, "trace", pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_the_update_is_theirs(
    name: str, path: bool | str, recorded: Callable[[str], Arrays]
) -> None:
    recipe, arrays = RECIPES[name], recorded(name)
    ours = replayed(recipe.overrides, path, *recipe.spaces)
    starts = [recipe.parameters(arrays, iteration) for iteration in range(recipe.iterations)]
    rollouts, acting = [], copy.deepcopy(ours.policy)
    for iteration, start in enumerate(starts):
        load(acting, start)
        rollouts.append(rollout_of(recipe, arrays, iteration, acting))
    assert any(rollout.terminated.any() for rollout in rollouts)
    assert ours.minibatch_size is not None
    ours.orders = [
        as_minibatches([arrays[f"{i}/order/{e}"] for e in range(ours.passes)], ours.minibatch_size)
        for i in range(recipe.iterations)
    ]
    load(ours.policy, starts[0])
    fit(ours, rollouts, callbacks=[Compare(recipe, arrays)])
    assert ours.counters.iterations == recipe.iterations


@pytest.mark.parametrize("name", RECIPES)
def test_weights_start_as_theirs(name: str, recorded: Callable[[str], Arrays]) -> None:
    """Orthogonal matrices of the same gains, biases and deviations the same."""
    recipe = RECIPES[name]
    ours = replayed(recipe.overrides, False, *recipe.spaces)
    theirs = recipe.parameters(recorded(name), 0)
    for name, parameter in ours.policy.named_parameters():
        pair = (parameter.detach(), theirs[name].view_as(parameter))
        if name.endswith("weight"):
            pair = tuple(torch.linalg.svdvals(weight.flatten(1)) for weight in pair)
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5, msg=name)
