"""How `PPO` behaves as a LightningModule: what it refuses, says and logs."""

from __future__ import annotations

import logging
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from lightning import Trainer
from torch import Tensor, nn

from ppo1_lightning import PPO, ConfigurationError, MlpPolicy, RolloutDataModule
from ppo1_lightning.algorithms.entry import restore_spaces
from ppo1_lightning.errors import DivergenceError
from ppo1_lightning.runs.csv_logger import CSVLogger

pytestmark = pytest.mark.heavy

Small = partial(MlpPolicy, hidden_size=8)


def fit(module: PPO, env: str = "CartPole-v1", iterations: int = 2, **trainer: Any) -> Trainer:
    data = RolloutDataModule(env, num_envs=2, num_steps=16, total_iterations=iterations)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    run = Trainer(accelerator="cpu", max_epochs=-1, **(options | trainer))
    run.fit(module, data)
    return run


def small(**options: Any) -> PPO:
    return PPO(Small, minibatch_size=16, update_epochs=2, **options)


def test_divergence_is_told() -> None:
    with pytest.raises(DivergenceError, match=r"diverged: \S+ is nan after iteration \d") as error:
        fit(small(learning_rate=1e30, compile=False), iterations=9)
    assert "\n" not in str(error.value)


def test_another_environment_s_spaces_are_refused(tmp_path: Path) -> None:
    fit(small(compile=False)).save_checkpoint(tmp_path / "cartpole.ckpt")
    module = PPO.load_from_checkpoint(tmp_path / "cartpole.ckpt", weights_only=True)
    with pytest.raises(ConfigurationError, match="observation space"):
        fit(module, "Acrobot-v1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("high", "x"), ("high", -5), ("high", 1e9), ("dtype", "nope"), ("shape", ["a"]), ("type", 1)],
)
def test_damaged_spaces_of_a_checkpoint_end_in_one_line(name: str, value: Any) -> None:
    image = {"type": "Box", "shape": [3, 40, 40], "dtype": "uint8", "high": 5}
    action = {"type": "Discrete", "n": 3}
    observed, _ = restore_spaces({"spaces": {"observation": image, "action": action}})
    assert observed == Box(0, 5, (3, 40, 40), np.uint8)
    damaged = {"spaces": {"observation": {**image, name: value}, "action": action}}
    with pytest.raises(ConfigurationError, match="damaged: its spaces cannot be made") as error:
        restore_spaces(damaged)
    assert "\n" not in str(error.value)


def test_a_spent_budget_is_told(caplog: pytest.LogCaptureFixture) -> None:
    module = small()
    fit(module)
    with caplog.at_level(logging.WARNING, "ppo1_lightning"):
        fit(module)
    assert "budget of 2 iterations is spent" in caplog.text
    assert module.counters.iterations == 2
    fit(module, iterations=3)
    assert module.counters.iterations == 3


def test_the_last_iteration_is_always_logged(tmp_path: Path) -> None:
    fit(small(log_every=2, compile=False), iterations=5, logger=CSVLogger(tmp_path))
    rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["env_steps", "64", "128", "160"]


@pytest.mark.slow
def test_new_environments_start_new_returns() -> None:
    module = small(normalize_returns=True)
    fit(module)
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=8, total_iterations=3)
    Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False).fit(
        module, data
    )
    assert module.counters.iterations == 3


def test_a_module_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(small(anneal=["clip_coef"]))).anneal == ("clip_coef",)


class RebindingNormalizer(nn.Module):
    """Puts a new tensor in its buffer's place, as user code may."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def update(self, observations: Tensor) -> None:
        self.mean = 0.5 * self.mean + 5 * observations.mean(0)


class RebindingPolicy(MlpPolicy):
    def __init__(self, *spaces: Any) -> None:
        super().__init__(*spaces, hidden_size=8, normalize_observations=False)
        self.observation_normalizer = RebindingNormalizer()  # type: ignore[assignment]

    def preprocess(self, observation: Tensor) -> Tensor:
        return observation - self.observation_normalizer.mean  # type: ignore[union-attr]


@pytest.mark.parametrize("compile", ["trace", pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_see_buffers_that_were_replaced(compile: Any) -> None:
    modules = [
        PPO(RebindingPolicy, minibatch_size=16, update_epochs=2, compile=path)
        for path in (False, compile)
    ]
    for module in modules:
        fit(module, iterations=3)
    eager, graphs = (module.policy.state_dict() for module in modules)
    torch.testing.assert_close(eager, graphs, atol=1e-5, rtol=0)


def test_a_restart_gives_every_tensor_memory_of_its_own() -> None:
    """As those of a checkpoint have: in a flat vector, sums may round in another way."""
    module = small(compile="trace")
    (optimizer,) = fit(module).optimizers

    def tensors() -> list[Tensor]:
        parameters = list(module.policy.parameters())
        return [*parameters, *(optimizer.state[p]["exp_avg"] for p in parameters)]

    def alone() -> list[bool]:
        return [t.untyped_storage().nbytes() == t.nbytes for t in tensors()]

    before = [tensor.clone() for tensor in tensors()]
    assert not any(alone())
    module.restart()
    assert all(alone())
    for tensor, its_value in zip(tensors(), before, strict=True):
        assert torch.equal(tensor, its_value)
