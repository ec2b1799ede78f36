"""Runs on environments whose observations take some preparing: Dicts, masks, wrappers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from tiny_runs import train_tiny

from ppo1_lightning.commands import evaluate
from ppo1_lightning.runs.load import load_run
from ppo1_lightning.simulators import make_simulator

pytestmark = pytest.mark.heavy


class Rooms(gymnasium.Env[Any, Any]):
    """Ends with an error at the first action that its mask did not allow."""

    observation_space = Dict(
        action_mask=MultiBinary(6),
        image=Box(0, 255, (36, 36, 1), np.uint8),
        room=Discrete(3),
    )
    action_space = Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        if not self._mask[action]:
            raise RuntimeError(f"action {action} is not allowed by {self._mask}")
        self._t += 1
        return self._look(), float(action), False, self._t == 7, {}

    def _look(self) -> dict[str, Any]:
        self._mask = np.zeros(6, np.int8)
        self._mask[self.np_random.choice(6, 2, replace=False)] = 1
        image = self.np_random.integers(256, size=(36, 36, 1), dtype=np.uint8)
        return {"action_mask": self._mask, "image": image, "room": self.np_random.integers(3)}


gymnasium.register("Rooms-v0", Rooms)  # type: ignore[arg-type]

ROOMS = ["env=gymnasium", "env.id=test_prepared_observations:Rooms-v0", "policy=cnn_small"]


def test_image_vector_and_mask_are_trained_on_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path / "rooms", *ROOMS)
    trained = load_run(run)
    policy: Any = trained.module.policy
    assert policy.observation_normalizer.mean.shape == (3,)
    assert 0.2 < policy.observation_normalizer.mean.min() < 0.45  # one third of the time each
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    parts = weights["ppo1_lightning"]["spaces"]["observation"]["parts"]
    assert [name for name, _ in parts] == ["vector", "image", "action_mask"]
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={run}", "episodes=6", "num_envs=2"])
    evaluate.main()
    assert "6 episodes" in capsys.readouterr().out


def test_a_part_may_be_left_out(tmp_path: Path) -> None:
    keys = "env.observation_keys=[image,action_mask]"
    trained = load_run(train_tiny(tmp_path / "rooms", *ROOMS, keys))
    policy: Any = trained.module.policy
    assert policy.observation_normalizer is None
    assert policy.action_mask.columns == slice(36 * 36, 36 * 36 + 6)


def test_wrappers_are_those_of_the_run_ever_after(tmp_path: Path) -> None:
    stack = "{_target_: gymnasium.wrappers.FrameStackObservation, _partial_: true, stack_size: 3}"
    flat = "{_target_: gymnasium.wrappers.FlattenObservation, _partial_: true}"
    words = ["env=gymnasium", "env.id=CartPole-v1", f"env.wrappers=[{stack}, {flat}]"]
    trained = load_run(train_tiny(tmp_path / "stacked", *words))
    simulator = make_simulator(trained.environment, [0])
    frames = [simulator.reset()[0]]
    frames += [simulator.step(np.array([t % 2])).observation[0] for t in range(2)]
    assert frames[-1].shape == (12,)
    np.testing.assert_array_equal(frames[-1], np.concatenate([frame[-4:] for frame in frames]))
    trained.module.act_greedily(torch.from_numpy(np.stack(frames)), torch.empty(0))
