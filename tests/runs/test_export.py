"""Exported policies act as the policy does, from the environment's own observations to its own
actions."""

from __future__ import annotations

import json
import operator
import os
import sys
from functools import partial, reduce
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray
from tiny_runs import train_tiny
from torch import Tensor

from examples.recurrent_policy import LinearMemory
from ppo1_lightning import PPO, CnnPolicy, ConfigurationError, EnvironmentSpec, MlpPolicy
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.commands.export import main
from ppo1_lightning.policies import by_time
from ppo1_lightning.policies.spaces import row_space
from ppo1_lightning.runs import export
from ppo1_lightning.runs.load import load_run
from ppo1_lightning.simulators import make_adapters, make_simulator
from ppo1_lightning.simulators.observations import ObservationAdapter

pytestmark = pytest.mark.heavy


class Spaces(gymnasium.Env[Any, Any]):
    """Has the spaces that it is told, and shows random observations."""

    def __init__(self, observation: Any, action: Any) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


gymnasium.register("Spaces-v0", Spaces)  # type: ignore[arg-type]


def spec(observation: Any, action: Any, **fields: Any) -> EnvironmentSpec:
    options = {"observation": observation, "action": action}
    return EnvironmentSpec("test_export:Spaces-v0", options=options, **fields)


FEW = Box(-2, 2, (3,), np.float32)
MASK = Box(np.array([1, 0, 0, 0]), np.ones(4), dtype=np.int8)  # one is always allowed
JOINT = Box(np.array([[1, 0, 0], [0, 0, 0]]), np.ones((2, 3)), dtype=np.int8)
CASES = {
    "clipped Box": (EnvironmentSpec("Hopper-v4", clip_actions=True), MlpPolicy),
    "Box": (EnvironmentSpec("HalfCheetah-v4"), MlpPolicy),
    "Discrete": (EnvironmentSpec("CartPole-v1"), MlpPolicy),
    "one-hot": (EnvironmentSpec("FrozenLake-v1"), MlpPolicy),
    "Dict": (
        EnvironmentSpec("FetchReach-v4", observation_keys=["observation", "desired_goal"]),
        MlpPolicy,
    ),
    "images": (EnvironmentSpec("Pong-v5"), CnnPolicy),
    "image, vector and mask": (
        spec(
            Dict(
                action_mask=MASK,
                image=Box(0, 255, (3, 40, 48), np.uint8),
                place=Discrete(5),
                speed=Box(-9, 9, (2,), np.float64),
            ),
            Discrete(4, start=2),
        ),
        CnnPolicy,
    ),
    "vector and mask": (
        spec(Dict(action_mask=Box(1, 1, (5, 1), np.int8), v=FEW), MultiDiscrete([2, 3])),
        MlpPolicy,
    ),
    "combined choices": (
        spec(
            Dict(action_mask=JOINT, n=Discrete(10**9, start=-5)),
            MultiDiscrete([2, 3], start=[4, -1]),
        ),
        MlpPolicy,
    ),
    "rescaled Box": (
        spec(FEW, Box(np.array([-1, 0, -np.inf]), np.array([3, 2, 5])), rescale_actions=True),
        MlpPolicy,
    ),
    "cells": (
        spec(Dict(image=Box(0, 255, (7, 7, 3), np.uint8), v=FEW), Discrete(3)),
        partial(CnnPolicy, size="grid"),
    ),
    "two images": (
        spec(
            Dict(
                a=Box(0, 255, (3, 40, 48), np.uint8),
                b=Dict(c=Box(0, 255, (36, 36, 1), np.uint8)),
            ),
            Discrete(3),
        ),
        CnnPolicy,
    ),
    "channels last": (
        spec(Box(0, 255, (48, 40, 3), np.uint8), Discrete(3, start=-1)),
        partial(CnnPolicy, size="large"),
    ),
    "pictures of floats": (spec(Box(-20, 99, (40, 48, 3)), Discrete(3)), CnnPolicy),
    "pictures of 16 bits": (spec(Box(0, 60_000, (40, 48, 3), np.uint16), Discrete(3)), CnnPolicy),
    "pictures of integers": (spec(Box(-9, 60, (40, 48, 3), np.int64), Discrete(3)), CnnPolicy),
    "dark pictures": (
        spec(Dict(image=Box(0, 100, (3, 40, 48), np.uint8), v=FEW), Discrete(3)),
        CnnPolicy,
    ),
    "grey pictures, stacked": (
        spec(Box(0, 1, (4, 40, 48, 1), np.uint8), Discrete(3)),
        CnnPolicy,
    ),
    "start": (spec(FEW, Discrete(3, start=5)), MlpPolicy),
    "bounded column": (spec(FEW, Box(0, 1, (2, 1)), clip_actions=True), MlpPolicy),
    "whole numbers": (spec(Box(0, 9, (4,), np.int64), Box(2, 4, (2,), np.int32)), MlpPolicy),
    "binary": (spec(MultiBinary(4), MultiBinary((1, 2))), MlpPolicy),
    "several": (
        spec(
            Dict(action=Discrete(3, start=1), m=MultiDiscrete([2, 3])),
            MultiDiscrete([2, 3], start=[4, -1]),
        ),
        partial(MlpPolicy, normalize_observations=False),
    ),
}

SLOW = pytest.mark.slow
FAST = {"clipped Box", "image, vector and mask", "several", "combined choices", "rescaled Box"}
"""One of each kind; the others are of the same, and each takes seconds to convert."""


def trained_like(environment: EnvironmentSpec, policy: Any) -> PPO:
    """Return a module with statistics, and actions that are not all alike."""
    torch.manual_seed(0)
    observation, action = make_adapters(environment)
    module = PPO(policy, observation_space=observation.space, action_space=action.space)
    module.configure_model()
    network: Any = module.policy
    with torch.no_grad():
        network.action_head.weight.mul_(200)
    if getattr(network, "observation_normalizer", None) is not None:
        seen = [adapted(observation, native) for native in native_observations(environment, 20)]
        network.observation_normalizer.update(torch.cat(seen))
    return module.eval()


def native_observations(environment: EnvironmentSpec, steps: int) -> list[list[NDArray[Any]]]:
    """Return what the library itself shows to random actions, the inputs of every step."""
    seen: list[Any] = []
    simulator: Any = make_simulator(environment, [1, 2, 3])
    adapt = simulator._observations
    simulator._observations = lambda native, out: (seen.append(native), adapt(native, out))
    simulator.reset()
    simulator.action_space.seed(0)
    for _ in range(steps):
        simulator.step(np.stack([simulator.action_space.sample() for _ in range(3)]))
    simulator.close()
    keys = [entry.key for entry in adapt.entries if entry.key]
    return [[np.array(leaf(row, key)) for key in keys or [""]] for row in seen]


def leaf(observation: Any, key: str) -> Any:
    """Return what is found under a name such as ``a.b``."""
    return reduce(operator.getitem, key.split("."), observation) if key else observation


def adapted(adapter: ObservationAdapter, native: list[NDArray[Any]]) -> Tensor:
    """Return what the policy observes in a simulator."""
    row = row_space(adapter.space)
    rows = np.empty((len(native[0]), *row.shape), row.dtype)
    keys = [entry.key for entry in adapter.entries if entry.key]
    whole: Any = {} if keys else native[0]
    for key, values in zip(keys, native, strict=False):
        *above, last = key.split(".")
        reduce(lambda inner, name: inner.setdefault(name, {}), above, whole)[last] = values
    adapter(whole, rows)
    return torch.from_numpy(rows)


def expected_actions(
    environment: EnvironmentSpec, module: OnPolicyModule, native: list[NDArray[Any]]
) -> NDArray[Any]:
    """Return what the environment receives when the policy acts greedily in a simulator."""
    observation, action = make_adapters(environment)
    chosen = module.act_greedily(adapted(observation, native), torch.empty(0))[0].numpy()
    return np.concatenate([action(row[None]) for row in chosen])  # it is made for one


def samples(greedy: export.GreedyPolicy, count: int) -> list[NDArray[Any]]:
    """Return observations that are not much like one another."""
    spaces = greedy.inputs.values()
    return [np.stack([space.sample() for _ in range(count)]) for space in spaces]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_both_files_act_as_the_policy(case: str, tmp_path: Path) -> None:
    environment, policy = CASES[case]
    module = trained_like(environment, policy)
    greedy = export.GreedyPolicy(module.policy, module.distribution, *make_adapters(environment))
    onnx, pt2 = export.write(greedy, tmp_path / "policy", {})
    session: Any = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    program = torch.export.load(pt2).module()
    seen = native_observations(environment, 5)
    batches = [*seen[:2], [part[:1] for part in seen[2]], samples(greedy, 40)]
    acted = []
    for native in batches:
        # the dtype that the space states: EnvPool's Discrete observations are of another
        native = [
            part.astype(space.dtype)
            for part, space in zip(native, greedy.inputs.values(), strict=True)
        ]
        acted.append(expected_actions(environment, module, native))
        (ours,) = session.run([greedy.output_name], dict(zip(greedy.inputs, native, strict=True)))
        theirs = program(*map(torch.from_numpy, native)).numpy()
        for actions in (ours, theirs):
            assert (actions.dtype, actions.shape) == (acted[-1].dtype, acted[-1].shape)
            np.testing.assert_allclose(actions, acted[-1], rtol=0, atol=1e-5)
    assert len(np.unique(np.concatenate(acted).round(3), axis=0)) > 1
    assert [entry.name for entry in session.get_inputs()] == list(greedy.inputs)
    if environment.clip_actions:
        assert np.isin(acted[-1], [greedy.output.low, greedy.output.high]).any()  # type: ignore[attr-defined]


class Counting(LinearMemory):
    """Its state is how many steps an episode has taken."""

    def __init__(self, *spaces: Any, state_dtype: torch.dtype = torch.int64) -> None:
        super().__init__(*spaces, state_size=1)
        self.state_dtype = state_dtype

    def forward(self, observations: Tensor, state: Tensor, starts: Tensor) -> Any:
        steps = []
        for begins in by_time(starts, state):
            state = (state.masked_fill(begins.unsqueeze(-1), 0) + 1).to(self.state_dtype)
            steps.append(state)
        both = torch.cat([self.encoder(observations), torch.cat(steps).float()], -1)
        return self.action_head(both), self.value_head(both).squeeze(-1), state


@pytest.mark.parametrize(
    ("policy", "id"),
    [
        (partial(MlpPolicy, memory="lstm", memory_size=8), "CartPole-v1"),
        pytest.param(partial(MlpPolicy, memory="gru", memory_size=8), "Hopper-v4", marks=SLOW),
        (LinearMemory, "CartPole-v1"),
        (Counting, "CartPole-v1"),
        pytest.param(partial(Counting, state_dtype=torch.uint8), "CartPole-v1", marks=SLOW),
    ],
    ids=["lstm", "gru", "own", "counting", "uint8"],
)
def test_both_files_remember_through_an_episode(policy: Any, id: str, tmp_path: Path) -> None:
    environment = EnvironmentSpec(id)
    module = trained_like(environment, policy)
    greedy = export.GreedyPolicy(module.policy, module.distribution, *make_adapters(environment))
    onnx, pt2 = export.write(greedy, tmp_path / "policy", {})
    session: Any = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    program = torch.export.load(pt2).module()
    simulator = make_simulator(environment, [1])
    observation, over = simulator.reset(), False
    state, starts = module.initial_state(1), torch.ones(1, dtype=torch.bool)
    states = [np.zeros_like(state), np.zeros_like(state)]
    names, steps = [greedy.output_name, f"next_{greedy.state_name}"], 0
    while not over:
        rows = torch.from_numpy(observation)
        action, *_, state = module.act_greedily(rows, torch.empty(0), state, starts)
        native = observation.astype(next(iter(greedy.inputs.values())).dtype)
        theirs = [
            session.run(names, dict(zip(greedy.inputs, (native, states[0]), strict=True))),
            [part.numpy() for part in program(*map(torch.from_numpy, (native, states[1])))],
        ]
        for i, (chosen, after) in enumerate(theirs):
            np.testing.assert_allclose(chosen, action, rtol=0, atol=1e-5)
            np.testing.assert_allclose(after, state, rtol=0, atol=1e-5)
            states[i] = after
        taken = simulator.step(action.numpy())
        observation, over, steps = taken.observation, bool(taken.episode_over[0]), steps + 1
        starts = torch.zeros(1, dtype=torch.bool)
    simulator.close()
    assert steps > 5


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(torch.bool, 0, 1), (torch.int16, -(2**15), 2**15 - 1), (torch.float64, -np.inf, np.inf)],
)
def test_the_space_of_a_state(dtype: torch.dtype, low: float, high: float) -> None:
    environment = EnvironmentSpec("CartPole-v1")
    module = trained_like(environment, partial(Counting, state_dtype=dtype))
    greedy = export.GreedyPolicy(module.policy, module.distribution, *make_adapters(environment))
    space: Any = greedy.inputs["state"]
    assert (space.low.item(), space.high.item()) == (low, high)
    assert str(space.dtype) == str(dtype).removeprefix("torch.")
    export.trace(greedy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_a_state_that_no_file_knows(dtype: torch.dtype) -> None:
    environment = EnvironmentSpec("CartPole-v1")
    module = trained_like(environment, partial(Counting, state_dtype=dtype))
    with pytest.raises(ConfigurationError, match=f"state_dtype is {dtype} cannot be exported"):
        export.GreedyPolicy(module.policy, module.distribution, *make_adapters(environment))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *words])
    main()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "hopper", "env=hopper")


def test_export_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command(monkeypatch, f"run={run}")
    paths = [run / "exports" / f"last_192.{kind}" for kind in ("onnx", "pt2")]
    assert capsys.readouterr().out.splitlines() == [
        "input observation: batch of Box(shape=(11,), float64)",
        "output action: batch of Box(shape=(3,), float64)",
        *map(str, paths),
    ]
    assert sorted((run / "exports").iterdir()) == paths
    trained = load_run(run)
    native = native_observations(trained.environment, 2)[-1]
    expected = expected_actions(trained.environment, trained.module, native)
    program = torch.export.load(paths[1]).module()
    ours = program(torch.from_numpy(native[0])).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    for path in paths:
        assert export.read_metadata(path) == {
            "environment": "Hopper-v4",
            "checkpoint": "last.ckpt",
            "env_steps": 192,
            "inputs": {"observation": "Box(shape=(11,), float64)"},
            "output": "Box(shape=(3,), float64)",
        }
        export._check_replaceable(path)  # an export may be replaced by one


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_what_is_no_export_is_left_alone(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    others = {
        "onnx": json.dumps({"a": 1}).encode(),
        "pt2": (run / "checkpoints/last.ckpt").read_bytes(),
    }
    path = tmp_path / f"mine.{kind}"
    path.write_bytes(others[kind])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, f"run={run}", f"output={tmp_path}/mine")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path} exists and is no export, expected")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == others[kind]
    path.unlink()
    os.mkfifo(path)
    assert export.read_metadata(path) is None  # nobody writes into it


def test_missing_extra_is_told_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, f"run={run}")
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: export needs the package onnxscript, expected the extra `export`: "
        "pip install 'ppo1-lightning[export]'\n"
    )


class Branching(MlpPolicy):
    """Looks at the numbers themselves to decide what to compute."""

    def forward(self, observation: Tensor, *memory: Any) -> Any:  # type: ignore[override]
        return super().forward(observation if observation.sum().item() > 0 else -observation)


def test_a_policy_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    environment = EnvironmentSpec("CartPole-v1")
    module = trained_like(environment, Branching)
    greedy = export.GreedyPolicy(module.policy, module.distribution, *make_adapters(environment))
    with pytest.raises(
        ConfigurationError, match="Branching cannot be exported, expected"
    ) as caught:
        export.write(greedy, tmp_path / "policy", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
