"""Observations normalised step by step: what is counted, shown, learned from, kept, evaluated."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from lightning import Trainer
from ranks import run_on_ranks
from torch import Tensor

from ppo1_lightning import (
    PPO,
    ConfigurationError,
    EnvironmentSpec,
    Evaluation,
    MlpPolicy,
    Rollout,
    RolloutDataModule,
    SimulationError,
)
from ppo1_lightning.policies.normalization import StepNormalizer
from ppo1_lightning.rollouts.acting import ModuleActing
from ppo1_lightning.rollouts.collector import Collector
from ppo1_lightning.rollouts.evaluation import EvaluationDataset
from ppo1_lightning.rollouts.normalized import NormalizedSimulator
from ppo1_lightning.rollouts.seeding import environment_seeds
from ppo1_lightning.runs.export import GreedyPolicy, trace
from ppo1_lightning.simulators import make_adapters, make_simulator

CPU = torch.device("cpu")
SCRIPTED = EnvironmentSpec("scripted_env:Scripted-v0")
STEPS = 40


def rollouts(normalizer: StepNormalizer | None) -> list[Rollout]:
    """Return two rollouts of three scripted environments, in which actions do not matter."""
    simulator: Any = make_simulator(SCRIPTED, [1, 2, 3])
    if normalizer is not None:
        simulator = NormalizedSimulator(simulator, normalizer, num_steps=STEPS, device=CPU)
    collector = Collector(simulator)

    def act(observations: Tensor, noise: Tensor) -> Any:
        n = len(observations)
        return torch.zeros(n, dtype=torch.int64), torch.zeros(n, 3), observations.sum(-1)

    return [
        collector.collect(
            lambda observations, noise, pools: ModuleActing(act, observations, noise, CPU, pools),
            torch.zeros(STEPS, 3, 3),
            policy_version=0,
            fraction_spent=0.0,
        )
        for _ in range(2)
    ]


def test_all_but_the_last_observations_of_episodes_are_counted() -> None:
    """Row after row, from one rollout into the next; the rest of a rollout is as it was."""
    plain, normalizer = rollouts(None), StepNormalizer(SCRIPTED_SPACE)
    shown, reference = rollouts(normalizer), StepNormalizer(SCRIPTED_SPACE)
    for raw, ours in zip(plain, shown, strict=True):
        assert (~raw.valid).any()
        for t in range(STEPS):
            expected = raw.observations[t].numpy().copy()
            reference.observe(expected, ~raw.valid[t].numpy(), CPU)
            np.testing.assert_array_equal(ours.observations[t], expected)
        assert torch.equal(ours.values[:-1], ours.observations.sum(-1))
        for name in ("rewards", "terminated", "truncated", "valid", "episode_lengths"):
            left, right = getattr(raw, name), getattr(ours, name)
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    assert normalizer.count > reference.count  # by the row after the last one


SCRIPTED_SPACE = Box(-np.inf, np.inf, (3,), np.float32)


def module(**options: Any) -> PPO:
    policy = partial(MlpPolicy, hidden_size=8, normalize_observations=False)
    defaults: dict[str, Any] = {"minibatch_size": 32, "update_epochs": 1, "compile": False}
    return PPO(policy, **{**defaults, "normalize_observations": True, **options})


def fit(ppo: PPO, env: str | EnvironmentSpec = "CartPole-v1", **options: Any) -> Trainer:
    data = RolloutDataModule(env, num_envs=4, num_steps=16, total_iterations=3)
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(accelerator="cpu", max_epochs=-1, **settings)
    trainer.fit(ppo, data)
    return trainer


class Watched(PPO):
    """Looks at what it learns from: with the policy as it acted."""

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        parameters, values, _ = self.policy(rollout.observations.flatten(0, 1), None)
        torch.testing.assert_close(parameters, rollout.dist_params.flatten(0, 1))
        torch.testing.assert_close(values, rollout.values[:-1].flatten())
        super().training_step(rollout, batch_idx)


@pytest.mark.heavy
@pytest.mark.parametrize("path", [False, "trace"])
def test_it_learns_from_what_it_saw(path: Any) -> None:
    policy = partial(MlpPolicy, hidden_size=8, normalize_observations=False)
    ppo = Watched(policy, minibatch_size=32, compile=path, normalize_observations=True)
    fit(ppo)
    assert ppo.observation_normalizer is not None
    rows = ppo.counters.transitions + 4  # and those after the last step, but for last ones
    assert rows - 4 <= ppo.observation_normalizer.count <= rows + 1e-4


@pytest.mark.heavy
def test_outside_of_training_observations_are_the_environments(tmp_path: Path) -> None:
    """`act`, `forward`, evaluation and export know the statistics, and a checkpoint keeps them."""
    ppo = module()
    trainer = fit(ppo)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = PPO.load_from_checkpoint(tmp_path / "last.ckpt")
    assert ppo.observation_normalizer is not None
    assert again.observation_normalizer is not None
    assert again.observation_normalizer.count == ppo.observation_normalizer.count
    raw = torch.randn(5, 4)
    shown = ppo.observation_normalizer(raw)
    assert not torch.allclose(raw, shown)
    expected = ppo.policy(shown, None)
    noise = ppo.distribution.noise(5)
    for one in (ppo, again):
        assert torch.equal(one(raw)[0], expected[0])
        assert torch.equal(one.act(raw, noise)[1], expected[0])
        assert torch.equal(one.act_as_shown(shown, noise)[1], expected[0])
        assert torch.equal(one.act_greedily(raw, noise)[2], expected[1])
    spec = EnvironmentSpec("CartPole-v1")
    count = ppo.observation_normalizer.count
    episodes = [
        EvaluationDataset(spec, Evaluation(3, 3), player, seed=1).play() for player in (ppo, again)
    ]
    assert episodes[0].returns.tolist() == episodes[1].returns.tolist()
    assert ppo.observation_normalizer.count == count
    greedy = GreedyPolicy(again.whole_policy, again.distribution, *make_adapters(spec))
    actions = trace(greedy).module()(raw)
    assert actions.tolist() == expected[0].argmax(-1).tolist()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.normalize_observations=false"):
        fit(PPO(MlpPolicy, normalize_observations=True))
    with pytest.raises(ConfigurationError, match=r"num_pools=2.*expected env\.num_pools=1"):
        fit(module(), EnvironmentSpec("CartPole-v1", num_pools=2))
    with pytest.raises(ConfigurationError, match="normalize_observations='x' is not true or false"):
        PPO(MlpPolicy, normalize_observations="x", action_space=Discrete(2))  # type: ignore[arg-type]


def spoiled(continuous: bool) -> EnvironmentSpec:
    options = {"bad_seed": environment_seeds(0, 4)[3], "what": "observation", "value": np.nan}
    options |= {"step": 20, "continuous": continuous}
    return EnvironmentSpec("test_guards:Spoiled-v0", backend="gymnasium", options=options)


def fail(rank: int, continuous: bool) -> str:
    try:
        fit(module(), spoiled(continuous), devices=2, strategy="ddp")
    except SimulationError as error:
        return str(error)
    return ""


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("continuous", [False, True])  # then the rank stops in its next step
def test_a_rank_that_fails_lets_the_others_end(continuous: bool) -> None:
    messages = run_on_ranks(fail, 2, continuous)
    for message in messages:
        assert "environment 3" in message
        assert "observation" in message


@pytest.mark.parametrize("continuous", [False, True])
def test_an_observation_that_is_no_number_is_named(continuous: bool) -> None:
    with pytest.raises(SimulationError, match=r"environment 3 .*observation.*nan"):
        fit(module(), spoiled(continuous))
