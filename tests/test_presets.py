"""The presets ppo2 and a2c against the originals' losses, and the sweeps that compare them."""

from __future__ import annotations

import hydra
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig

from ppo1_lightning import PPO, MlpPolicy
from ppo1_lightning.commands import config as cli
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.rollouts.sizes import Sizes

RUN_FOLDER = "trainer.default_root_dir=unused"  # otherwise known only while Hydra runs


def compose(*overrides: str) -> DictConfig:
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        return hydra.compose("train", [*overrides, RUN_FOLDER], return_hydra_config=True)


def preset(name: str) -> PPO:
    config = compose("env=hopper", f"algo={name}").algo
    torch.manual_seed(0)
    box = Box(-1, 1, (3,))
    ppo: PPO = instantiate(
        config, policy=MlpPolicy, observation_space=box, action_space=box, _convert_="all"
    )
    ppo.configure_model()
    return ppo


def minibatch(ppo: PPO, drift: float) -> tuple[torch.Tensor, torch.Tensor, Minibatch]:
    """Return distribution parameters, values, and rows whose policy was ``drift`` away."""
    stream = torch.Generator().manual_seed(1)
    observations, actions = (torch.randn(32, 3, generator=stream) for _ in range(2))
    parameters, values, _ = ppo.policy(observations, None)
    old_dist_params = parameters.detach() + drift * torch.randn(parameters.shape, generator=stream)
    rows = Minibatch(
        observations=observations,
        actions=actions,
        advantages=torch.randn(32, generator=stream),
        returns=torch.randn(32, generator=stream),
        old_values=values.detach() + 0.5 * torch.randn(32, generator=stream),
        old_dist_params=old_dist_params,
        old_log_probs=ppo.distribution.log_prob(old_dist_params, actions),
        weights=torch.full((32,), 1 / 32),
    )
    return parameters, values, rows


def test_ppo2_loss_is_the_originals() -> None:
    """``ppo2/model.py``: half the larger squared error, weight 0.5; the larger of two pg losses."""
    ppo = preset("ppo2")
    parameters, values, rows = minibatch(ppo, drift=0.3)
    ours = ppo.loss(rows).item()
    log_probs = ppo.distribution.log_prob(parameters, rows.actions).detach().numpy()
    v, returns, old = (x.detach().numpy() for x in (values, rows.returns, rows.old_values))
    advantages, ratio = rows.advantages.numpy(), np.exp(log_probs - rows.old_log_probs.numpy())
    assert (np.abs(ratio - 1) > 0.2).any()
    clipped = old + np.clip(v - old, -0.2, 0.2)
    value_loss = 0.5 * np.mean(np.maximum((v - returns) ** 2, (clipped - returns) ** 2))
    surrogate = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
    assert ours == pytest.approx(np.mean(surrogate) + 0.5 * value_loss, rel=1e-5)


def test_a2c_gradient_is_the_actor_critics() -> None:
    """``a2c/a2c.py``: A * neglogp - 0.01 entropy + 0.5 mean squared error, no ratio at all."""
    ppo = preset("a2c")
    parameters, values, rows = minibatch(ppo, drift=0.0)
    weights = list(ppo.policy.parameters())
    ours = ppo.loss(rows)
    log_probs = ppo.distribution.log_prob(parameters, rows.actions)
    entropy = ppo.distribution.entropy(parameters).mean()
    error = (values - rows.returns).square().mean()
    theirs = -(rows.advantages * log_probs).mean() - 0.01 * entropy + 0.5 * error
    torch.testing.assert_close(
        torch.autograd.grad(ours, weights, retain_graph=True), torch.autograd.grad(theirs, weights)
    )
    assert type(ppo.configure_optimizers()).__name__ == "TensorFlowRMSprop"


def test_a2c_takes_one_step_on_the_whole_rollout() -> None:
    config = compose("env=hopper", "algo=a2c", "num_envs=4")
    sizes = {key: config[key] for key in ("num_envs", "num_steps")}
    sizes = Sizes.create(
        **sizes,
        minibatch_size=config.algo.minibatch_size,
        epochs=config.algo.update_epochs,
    )
    assert sizes.minibatch_size == 4 * 5
    assert sizes.minibatches * sizes.epochs == 1


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["ppo2", "a2c"])
def test_algo_on_the_command_line_wins_over_the_environments(name: str, order: int) -> None:
    config = compose(*["env=hopper", f"algo={name}"][::order])
    assert config.algo.max_grad_norm == 0.5
    assert (config.env.id, config.env.clip_actions) == ("Hopper-v4", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "total_steps"),
    [
        ("mujoco7", 21, 1_000_000),
        ("actor_critics", 27, 1_000_000),
        ("atari_paper", 147, 10_000_000),
    ],
)
def test_sweep(name: str, count: int, total_steps: int) -> None:
    """The right number of different jobs, each of which composes (of Atari, those of one seed)."""
    swept = compose(f"experiment={name}").hydra
    assert swept.mode.name == "MULTIRUN"
    words = [f"{key}={value}" for key, value in swept.sweeper.params.items()]
    overrides = OverridesParser.create().parse_overrides(words)
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    assert len({tuple(job) for job in jobs}) == len(jobs) == count
    for job in jobs:
        if name != "atari_paper" or "seed=0" in job:
            config = compose(f"experiment={name}", *job)
            assert config.total_steps == total_steps
            assert f"seed={config.seed}" in job
