"""Environments in pools that take turns are the same experiment as all of them at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor

from ppo1_lightning import PPO, MlpPolicy, Rollout, RolloutDataModule
from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.rollouts.acting import ModuleActing
from ppo1_lightning.rollouts.collector import Collector
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator

pytestmark = pytest.mark.heavy

CARTPOLE = EnvironmentSpec("CartPole-v1", options={"max_episode_steps": 20})
SPECS = {
    "envpool": CARTPOLE,
    "gymnasium": replace(CARTPOLE, backend="gymnasium"),
    "pinned": replace(CARTPOLE, num_threads=1),
    "atari": EnvironmentSpec("Pong-v5", options={"episodic_life": True, "reward_clip": True}),
    "dict": EnvironmentSpec("FetchReach-v4", observation_keys=["observation", "desired_goal"]),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("num_pools", [2, 4])
def test_steps_are_the_same_in_pools(spec: EnvironmentSpec, num_pools: int) -> None:
    seeds = [3, 1, 4, 15]
    whole, divided = (make_simulator(replace(spec, num_pools=n), seeds) for n in (1, num_pools))
    generator = np.random.default_rng(0)
    shape = (4, *(whole.action_space.shape or ()))
    np.testing.assert_array_equal(whole.reset(), divided.reset())
    resets = 0
    for _ in range(50):
        discrete = np.issubdtype(whole.action_space.dtype, np.integer)
        action = generator.integers(0, 2, shape) if discrete else generator.uniform(-1, 1, shape)
        expected, ours = whole.step(action), divided.step(action)
        for field, of_whole in expected._asdict().items():
            np.testing.assert_array_equal(getattr(ours, field), of_whole, err_msg=field)
        resets += int((~expected.valid).sum())
    assert resets > 0 or spec.id != "CartPole-v1"


class RecordingPPO(PPO):
    """PPO that keeps its rollouts."""

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.rollouts = [*getattr(self, "rollouts", []), rollout]
        super().training_step(rollout, batch_idx)


def train(compile: Any, num_pools: int) -> RecordingPPO:
    torch.manual_seed(0)
    data = RolloutDataModule(
        replace(CARTPOLE, num_pools=num_pools), num_envs=4, num_steps=32, total_iterations=4
    )
    module = RecordingPPO(MlpPolicy, minibatch_size=32, update_epochs=2, compile=compile)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("compile", [False, "trace"])
def test_training_is_the_same_in_pools(compile: Any) -> None:
    whole, divided = train(compile, 1), train(compile, 2)
    for expected, ours in zip(whole.rollouts, divided.rollouts, strict=True):
        torch.testing.assert_close(ours._asdict(), expected._asdict(), equal_nan=True)
    torch.testing.assert_close(divided.state_dict(), whole.state_dict(), atol=1e-6, rtol=0)


class Watched:
    """A simulator and a policy that note what happens when."""

    def __init__(self, num_pools: int) -> None:
        self.events: list[str] = []
        self.simulator = make_simulator(replace(CARTPOLE, num_pools=num_pools), [1, 2])
        send, receive = self.simulator.send, self.simulator.receive

        def noted_send(action: NDArray[Any], pool: int) -> None:
            self.events.append(f"send {pool}")
            send(action, pool)

        def noted_receive(observation: NDArray[Any], pool: int) -> Any:
            self.events.append(f"receive {pool}")
            return receive(observation, pool)

        self.simulator.send, self.simulator.receive = noted_send, noted_receive  # type: ignore[method-assign]

    def collect(self, num_steps: int) -> Rollout:
        def act(observations: Tensor, noise: Tensor) -> Any:
            self.events.append("act")
            count = len(observations)
            return torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2), observations[:, 0]

        return Collector(self.simulator).collect(
            lambda observations, noise, pools: ModuleActing(
                act, observations, noise, torch.device("cpu"), pools
            ),
            torch.zeros(num_steps, 2, 1),
            policy_version=0,
            fraction_spent=0.0,
        )


def test_one_pool_is_simulated_while_the_policy_acts_in_the_other() -> None:
    watched = Watched(2)
    rollout = watched.collect(2)
    first = ["act", "send 0", "act", "send 1"]
    second = ["receive 0", "act", "send 0", "receive 1", "act", "send 1"]
    assert watched.events == [*first, *second, "receive 0", "receive 1", "act", "act"]
    # values tell which observation the policy has seen
    torch.testing.assert_close(rollout.values[:-1], rollout.observations[..., 0])


def test_pools_are_of_the_same_size() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"^env.num_pools=4 does not divide a device's 6 environments, .* such as 3$",
    ):
        make_simulator(replace(CARTPOLE, num_pools=4), range(6))


PENDULUM = EnvironmentSpec("Pendulum-v1", num_pools=2)


def act_on_pendulum(observations: Tensor, noise: Tensor) -> Any:
    """Act with what is observed, so with a NaN where that is one."""
    return observations[:, :1], observations[:, :2], observations[:, 0]


def collect_from_pendulum(receive: Any) -> Rollout:
    """Collect from two pools of two environments, of which ``receive`` makes what it wants."""
    simulator = make_simulator(PENDULUM, [1, 2, 3, 4])
    simulator.receive = receive(simulator.receive)  # type: ignore[method-assign]
    return Collector(simulator).collect(
        lambda observations, noise, pools: ModuleActing(
            act_on_pendulum, observations, noise, torch.device("cpu"), pools
        ),
        torch.zeros(5, 4, 1),
        policy_version=0,
        fraction_spent=0.0,
    )


def test_the_environment_that_observes_no_number_is_named() -> None:
    calls = iter(range(100))

    def spoiled(receive: Any) -> Any:
        def received(observation: NDArray[Any], pool: int) -> Any:
            fields = receive(observation, pool)
            if next(calls) == 5:  # step 3 of the second pool
                observation[1] = np.nan
            return fields

        return received

    with pytest.raises(SimulationError, match="returned the observation nan") as error:
        collect_from_pendulum(spoiled)
    assert error.value.environment == 3


@pytest.mark.parametrize("fails_at", [0, 3, 8, 9])
def test_an_observation_that_never_came_is_not_blamed(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def failing(receive: Any) -> Any:
        def received(observation: NDArray[Any], pool: int) -> Any:
            if next(calls) == fails_at:
                raise ConfigurationError("what the simulator says")
            return receive(observation, pool)

        return received

    def nothing_but_nan(shape: Any, dtype: Any, **options: Any) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(torch, "empty", nothing_but_nan)
    with pytest.raises(ConfigurationError, match="what the simulator says"):
        collect_from_pendulum(failing)
