"""Checkpoints of 0.1 load and resume, with the numbers that 0.1 itself went on to.

``v0_1/cartpole.ckpt`` was written by 0.1.0 (commit ee62d0c) after three of six iterations;
``cartpole_resumed.pt`` holds the tensors that 0.1.0 ended with when it resumed from it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from ppo1_lightning import PPO, ConfigurationError, MlpPolicy, RolloutDataModule, TensorFlowRMSprop

FOLDER = Path(__file__).parent / "v0_1"


def resume(module: PPO) -> None:
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=32, total_iterations=6, seed=3)
    Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False).fit(
        module, data, ckpt_path=FOLDER / "cartpole.ckpt", weights_only=True
    )


def test_a_checkpoint_of_the_first_release_is_loaded() -> None:
    module = PPO.load_from_checkpoint(FOLDER / "cartpole.ckpt")
    assert module.counters.iterations == 3
    assert (module.mpi_workers, module.learning_rate, module.seed) == (2, 1e-3, 3)
    assert module.anneal == ("learning_rate", "clip_coef")
    saved = torch.load(FOLDER / "cartpole.ckpt", weights_only=True)["state_dict"]
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, saved[name])


def test_a_run_of_the_first_release_goes_on_as_it_would_have() -> None:
    module = PPO.load_from_checkpoint(FOLDER / "cartpole.ckpt", compile=False)
    resume(module)
    assert module.counters.iterations == 6
    expected = torch.load(FOLDER / "cartpole_resumed.pt", weights_only=True)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6)


def test_another_optimizer_than_the_checkpoint_s_is_refused() -> None:
    module = PPO(
        partial(MlpPolicy, hidden_size=8),
        minibatch_size=32,
        update_epochs=2,
        mpi_workers=2,
        optimizer=TensorFlowRMSprop,
        seed=3,
    )
    with pytest.raises(ConfigurationError, match=r"optimizer.*TensorFlowAdam.*TensorFlowRMSprop"):
        resume(module)
