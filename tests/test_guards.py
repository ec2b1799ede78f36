"""Numbers that are not finite: the run stops, says where, and keeps its last good parameters."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import scripted_env
import torch
from gymnasium.spaces import Box
from lightning import Trainer
from ranks import run_on_ranks
from torch import Tensor

from ppo1_lightning import PPO, EnvironmentSpec, MlpPolicy, Rollout, RolloutDataModule
from ppo1_lightning.callbacks import RunCheckpoint
from ppo1_lightning.commands import config as cli
from ppo1_lightning.errors import DivergenceError, SimulationError
from ppo1_lightning.rollouts.seeding import environment_seeds
from ppo1_lightning.rollouts.segment import Minibatch, Segment

pytestmark = pytest.mark.heavy

NUM_ENVS, NUM_STEPS = 4, 8


class SpoiledEnv(scripted_env.ScriptedEnv):
    """Returns ``value`` as its reward or in its observation in its step number ``step``, from 1.

    Only the environment with seed ``bad_seed`` does.
    """

    def __init__(
        self, bad_seed: int, what: str, value: float, step: int, continuous: bool = False
    ) -> None:
        super().__init__()
        self._bad_seed, self._what, self._value, self._step = bad_seed, what, value, step
        self._steps = 0  # as the simulator counts them, resets included
        if continuous:
            self.action_space = cast(Any, Box(-1, 1, (2,)))

    def reset(self, **options: Any) -> Any:
        self._steps += self._episode >= 0
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self._steps += 1
        if self._seed == self._bad_seed and self._steps >= self._step:
            if self._what == "reward":
                reward = self._value
            else:
                observation = observation + np.array([0, self._value, 0], np.float32)
        return observation, reward, *rest


gymnasium.register("Spoiled-v0", entry_point="test_guards:SpoiledEnv")


def spoiled_env(environment: int, **options: Any) -> EnvironmentSpec:
    options["bad_seed"] = environment_seeds(0, NUM_ENVS)[environment]
    return EnvironmentSpec("test_guards:Spoiled-v0", backend="gymnasium", options=options)


def fit(
    folder: Path,
    module: PPO,
    env: str | EnvironmentSpec = "CartPole-v1",
    *,
    resume: Path | None = None,
    iterations: int = 6,
    **trainer: Any,
) -> None:
    """Run with a checkpoint after every third iteration."""
    data = RolloutDataModule(
        env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, total_iterations=iterations
    )
    Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[RunCheckpoint(folder, every_n_iterations=3)],
        **trainer,
    ).fit(module, data, ckpt_path=resume, weights_only=True)


def ppo(kind: type[PPO] = PPO, **options: Any) -> PPO:
    small = partial(MlpPolicy, hidden_size=8)
    return kind(small, minibatch_size=16, update_epochs=2, **options)


def poisoned(poison: str, **options: Any) -> PPO:
    kind = type("Poisoned", (Poisoned,), {"poison": poison})
    return ppo(kind, compile=False, **options)


def good_iterations(path: Path) -> int:
    """Return the iteration of a checkpoint, after a check that everything in it is finite."""
    checkpoint = torch.load(path, weights_only=True)
    assert_finite(checkpoint["state_dict"])
    assert_finite(checkpoint["optimizer_states"])
    iterations = checkpoint["ppo1_lightning"]["counters"]["iterations"]
    assert checkpoint["global_step"] == iterations
    PPO.load_from_checkpoint(path, policy=partial(MlpPolicy, hidden_size=8), weights_only=True)
    return iterations


def assert_finite(tree: Any) -> None:
    if isinstance(tree, Tensor):
        assert tree.isfinite().all()
    elif isinstance(tree, dict):
        assert_finite(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            assert_finite(item)


# -------------------------------------------------------------------- the simulator


@pytest.mark.parametrize(
    "value", [math.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (math.inf, -math.inf))]
)
@pytest.mark.parametrize(
    ("what", "continuous"), [("reward", False), ("observation", False), ("observation", True)]
)
def test_a_bad_number_of_the_simulator(
    what: str, continuous: bool, value: float, tmp_path: Path
) -> None:
    """In iteration 5: the fourth, which no periodic save has seen, is in ``last.ckpt``."""
    env = spoiled_env(2, what=what, value=value, step=4 * NUM_STEPS + 3, continuous=continuous)
    with pytest.raises(SimulationError) as caught:
        fit(tmp_path, ppo(), env)
    last = tmp_path / "last.ckpt"
    assert cli.explain(caught.value) == (
        "iteration 5: environment 2 of 'test_guards:Spoiled-v0' returned the "
        f"{what} {value}, expected finite numbers of at most 1e+18; the last good parameters "
        f"are in {last}"
    )
    assert good_iterations(last) == 4


def test_a_bad_number_in_the_first_rollout(tmp_path: Path) -> None:
    """Nothing was learned: nothing is saved, no file is named."""
    with pytest.raises(SimulationError) as caught:
        fit(tmp_path, ppo(), spoiled_env(0, what="reward", value=math.nan, step=1))
    message = cli.explain(caught.value)
    assert message.startswith("iteration 1: environment 0 ")
    assert "good" not in message
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- the update


class Poisoned(PPO):
    """Its loss, or a parameter, is not finite any more in the fifth iteration."""

    poison = "none"

    def loss(self, batch: Minibatch) -> Tensor:
        loss = super().loss(batch)
        if self.poison in ("nan loss", "inf loss") and self.counters.iterations == 4:
            return loss * float(self.poison[:3])
        return loss

    def finish(self, rollout: Rollout, segment: Segment) -> None:
        with torch.no_grad():
            parameter = next(self.policy.parameters())
            if self.poison == "parameter" and self.counters.iterations == 4:
                parameter[0, 0] = math.inf
            if self.poison == "overflow" and self.counters.iterations == 4:
                named = dict(self.policy.named_parameters())
                named["value_trunk.2.bias"].fill_(100.0)
                named["value_head.weight"].fill_(6e18)  # the square of the value overflows
        super().finish(rollout, segment)


@pytest.mark.parametrize(
    ("poison", "quantity"),
    [
        ("nan loss", "gradient_norm is nan"),
        ("inf loss", "gradient_norm is (nan|inf)"),
        ("parameter", "parameter_norm is inf"),
        ("overflow", "loss/value is inf"),
    ],
)
def test_a_bad_update_is_undone(poison: str, quantity: str, tmp_path: Path) -> None:
    module = poisoned(poison)
    with pytest.raises(DivergenceError, match=f"{quantity} after iteration 5;") as caught:
        fit(tmp_path, module)
    assert f"the last good parameters are in {tmp_path / 'last.ckpt'}" in cli.explain(caught.value)
    assert good_iterations(tmp_path / "last.ckpt") == module.counters.iterations == 4
    assert_finite(module.state_dict())

    resumed = ppo()
    fit(tmp_path, resumed, resume=tmp_path / "last.ckpt")
    assert resumed.counters.iterations == good_iterations(tmp_path / "last.ckpt") == 6


def test_the_undone_state_is_that_of_the_iteration_before(tmp_path: Path) -> None:
    """Bit by bit what a run of four iterations leaves, Adam's moments and statistics included."""
    module = poisoned("nan loss", normalize_returns=True)
    with pytest.raises(DivergenceError):
        fit(tmp_path / "bad", module)
    fit(tmp_path / "good", ppo(compile=False, normalize_returns=True), iterations=4)
    bad, good = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("bad", "good")
    )
    torch.testing.assert_close(bad["state_dict"], good["state_dict"], atol=0, rtol=0)
    moments = [c["optimizer_states"][0]["state"] for c in (bad, good)]
    torch.testing.assert_close(*moments, atol=0, rtol=0)
    assert moments[0][0]["step"] == 4 * 2 * 2  # iterations, epochs, minibatches
    counters = [c["ppo1_lightning"]["counters"] | {"seconds": 0} for c in (bad, good)]
    assert counters[0] == counters[1]


@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_huge_learning_rate(compile: Any, tmp_path: Path) -> None:
    """In the very first iteration: the initial parameters are the last good ones."""
    with pytest.raises(DivergenceError, match="after iteration 1;"):
        fit(tmp_path, ppo(learning_rate=1e30, compile=compile))
    assert good_iterations(tmp_path / "last.ckpt") == 0


def test_an_older_last_checkpoint_is_not_replaced_by_a_bad_one(tmp_path: Path) -> None:
    fit(tmp_path, ppo(), iterations=3)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    with pytest.raises(DivergenceError, match="after iteration 4;"):
        fit(tmp_path, ppo(learning_rate=1e30), resume=tmp_path / "last.ckpt")
    assert good_iterations(tmp_path / "last.ckpt") == 3
    after = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(after, before, atol=0, rtol=0)


# -------------------------------------------------------------------- several ranks


def diverge(rank: int, folder: Path) -> str:
    try:
        fit(folder, ppo(learning_rate=1e30), devices=2, strategy="ddp")
    except DivergenceError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_all_ranks_diverge_together(tmp_path: Path) -> None:
    messages = run_on_ranks(diverge, 2, tmp_path)
    assert messages[0] == messages[1]
    assert "after iteration 1;" in messages[0]
    assert good_iterations(tmp_path / "last.ckpt") == 0


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., str]:
    """Run the command line on two devices, and return its only error line."""

    def run(*words: str) -> str:
        tiny = ["debug=default", "num_envs=4", "trainer.accelerator=cpu", "trainer.devices=2"]
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", "ppo1_lightning", *tiny, *words, "hydra.run.dir=run"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode not in (0, 1)
        assert "Traceback" not in done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        return line

    return run


@pytest.mark.slow
def test_divergence_on_two_devices_is_told_once(
    command: Callable[..., str], tmp_path: Path
) -> None:
    line = command("env=cartpole", "algo.learning_rate=1e30")
    assert "after iteration 1;" in line
    assert line.endswith(str(tmp_path / "run/checkpoints/last.ckpt"))
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_a_bad_number_on_the_second_device(command: Callable[..., str], tmp_path: Path) -> None:
    """Environments are numbered over all devices, which save together what was learned so far."""
    seed = environment_seeds(0, 4)[3]
    line = command(
        "env=gymnasium",
        "env.id=test_guards:Spoiled-v0",
        f"+env.options={{bad_seed:{seed},what:reward,value:nan,step:40}}",
        "callbacks.checkpoint.every_n_iterations=1000",
    )
    assert "error: iteration 2: environment 3 of" in line
    assert "returned the reward nan" in line
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert line.endswith(str(last))
    assert torch.load(last, weights_only=True)["global_step"] == 1
