"""The presets ppo2 and a2c against the originals' losses, and the sweeps that compare them."""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning import PPO, ConfigurationError, MlpPolicy
from ppo1_lightning.algorithms.coefficients import anneal
from ppo1_lightning.commands import config as cli
from ppo1_lightning.rollouts.budget import Budget, Counters
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.rollouts.sizes import Sizes

RUN_FOLDER = "trainer.default_root_dir=unused"  # otherwise known only while Hydra runs


def compose(*overrides: str) -> DictConfig:
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        return hydra.compose("train", [*overrides, RUN_FOLDER], return_hydra_config=True)


def preset(name: str, *overrides: str) -> PPO:
    config = compose("env=hopper", f"algo={name}", *overrides)
    torch.manual_seed(0)
    box, policy = Box(-1, 1, (3,)), instantiate(config.policy, _convert_="all")
    ppo: PPO = instantiate(
        config.algo, policy=policy, observation_space=box, action_space=box, _convert_="all"
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
        starts=torch.zeros(32, dtype=torch.bool),
        state=torch.zeros(32, 0),
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
def test_ppo2_atari(order: int) -> None:
    """Baselines' ``ppo2/defaults.py``."""
    config = compose(*["env=pong", "algo=ppo2_atari"][::order])
    assert (config.num_envs, config.num_steps, config.mpi_workers) == (8, 128, 1)
    assert (config.policy.size, config.policy.initialization) == ("large", "orthogonal")
    assert config.env.options.stack_num == 4
    algo = config.algo
    assert (algo.minibatch_size, algo.update_epochs) == (8 * 128 // 4, 4)
    assert (algo.learning_rate, algo.clip_coef, algo.value_clip) == (2.5e-4, 0.1, 0.1)
    assert (algo.ent_coef, algo.vf_coef, algo.anneal) == (0.01, 0.25, ["learning_rate"])
    assert (algo.normalize_observations, algo.normalize_returns) == (False, False)


def test_the_range_of_values_is_annealed_as_that_of_ratios() -> None:
    ppo = preset("ppo2", "algo.anneal=[clip_coef,value_clip]")
    anneal(ppo, ppo.configure_optimizers(), fraction_spent=0.25)
    assert ppo.now.values["clip_coef"] == ppo.now.values["value_clip"] == pytest.approx(0.15)
    with pytest.raises(ConfigurationError, match="anneal names value_clip, which is null"):
        PPO(MlpPolicy, anneal=["value_clip"])


@pytest.mark.parametrize(
    ("limit", "after"), [({"total_steps": 400}, [79, 159]), ({"total_iterations": 5}, [79, 159])]
)
def test_a2c_counts_a_rollout_before_its_step(limit: dict[str, int], after: list[int]) -> None:
    budget = Budget(**limit)
    for iterations, rows in enumerate(after):
        counters = Counters(iterations=iterations, env_steps=80 * iterations)
        assert budget.fraction_spent_at_last_row(counters, 80) == pytest.approx(rows / 400)


def test_of_seconds_nobody_knows_what_a_rollout_will_take() -> None:
    assert Budget(total_seconds=10).fraction_spent_at_last_row(Counters(seconds=4), 80) == 0.4


def test_weights_start_as_theirs() -> None:
    """``a2c/utils.py``: orthogonal times sqrt 2, the heads times 0.01 and 1, biases 0."""
    torch.manual_seed(0)
    space = Box(-1, 1, (3,))
    policy = MlpPolicy(space, space, initialization="orthogonal", normalize_observations=False)
    for name, parameter in policy.named_parameters():
        if parameter.ndim == 2:
            gain = {"action_head.weight": 0.01, "value_head.weight": 1.0}.get(name, 2**0.5)
            short = parameter if len(parameter) < parameter.shape[1] else parameter.T
            torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(len(short)))
        else:
            assert (parameter == 0).all()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["ppo2", "a2c"])
def test_algo_on_the_command_line_wins_over_the_environments(name: str, order: int) -> None:
    config = compose(*["env=hopper", f"algo={name}"][::order])
    assert config.algo.max_grad_norm == 0.5
    assert (config.env.id, config.env.clip_actions) == ("Hopper-v4", True)


@pytest.mark.heavy
def test_the_table_of_deviations() -> None:
    """In ``docs/algorithm.md``: one column a recipe."""
    text = (Path(__file__).parents[1] / "docs" / "algorithm.md").read_text("utf-8")
    table = text[text.index("## Deviations from ppo1") :].split("\n\n")[2].splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("| ").split(" |")] for line in table]
    recipes = {"ppo1": ["algo=ppo1_mujoco"]}
    for atari in ("ppo2_atari", "cleanrl_atari"):
        recipes[atari] = ["env=pong", f"algo={atari}"]
    assert rows[0][1:6] == ["ppo1", "ppo2", "ppo2_atari", "a2c", "sb3"]
    assert rows[0][6:] == ["cleanrl_atari", "cleanrl_mujoco"]
    for column, recipe in enumerate(rows[0][1:], 1):
        config = compose("env=hopper", *recipes.get(recipe, [f"algo={recipe}"]))
        for option, *cells in rows[2:]:
            said = yaml.safe_load(cells[column - 1]) if len(cells) >= column else None
            assert OmegaConf.select(config, option) == said, (option, recipe)


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
