"""A policy acts the same as a module and as graphs."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from lightning import Trainer
from torch import Tensor

import ppo1_lightning.fast.acting
from ppo1_lightning import PPO, CnnPolicy, MlpPolicy
from ppo1_lightning.fast.acting import ActingGraphs
from ppo1_lightning.fast.graphs import LayoutError
from ppo1_lightning.rollouts.acting import WHOLE, ModuleActing


def made(policy: Any, observations: Box, actions: Any) -> PPO:
    ppo = PPO(policy, observation_space=observations, action_space=actions)
    ppo.configure_model()
    return ppo


def rollout_of(
    ppo: PPO, num_steps: int, num_envs: int, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    observations = torch.randn(num_steps + 1, num_envs, *shape)
    return observations, ppo.distribution.noise(num_steps, num_envs)


TWO_POOLS = (slice(0, 2), slice(2, 4))


@pytest.mark.parametrize(
    ("shared", "pools", "compiled"),
    [
        pytest.param(False, WHOLE, False, id="separate-whole"),
        pytest.param(False, TWO_POOLS, False, id="separate-two_pools"),
        pytest.param(True, WHOLE, False, id="shared-whole"),
        pytest.param(True, TWO_POOLS, False, id="shared-two_pools"),
        # each takes a compilation, or two
        pytest.param(False, TWO_POOLS, True, id="separate-compiled", marks=pytest.mark.heavy),
        pytest.param(True, WHOLE, True, id="shared-compiled", marks=pytest.mark.slow),
    ],
)
def test_graphs_act_as_the_policy_does(
    shared: bool, pools: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        ppo1_lightning.fast.acting, "VALUE_BATCH", 7
    )  # 24 rows: the last ones overlap
    ppo = made(
        lambda *spaces: MlpPolicy(*spaces, shared_trunk=shared), Box(-1, 1, (5,)), Discrete(3)
    )
    observations, noise = rollout_of(ppo, 5, 4, (5,))
    ppo._acting = ActingGraphs(
        ppo.policy, ppo.distribution, observations, noise, pools, compiled=compiled
    )
    for _ in range(2):
        graphs = ppo.acting(observations, noise, pools)
        module = ModuleActing(ppo.act, observations, noise, ppo.device)
        assert not isinstance(graphs, ModuleActing)
        with torch.inference_mode():
            for step in range(len(noise)):
                parts = [graphs.act(step, pool) for pool in range(len(pools))]
                assert np.array_equal(np.concatenate(parts), module.act(step, 0))
        for ours, expected in zip(graphs.outputs(), module.outputs(), strict=True):
            assert not ours.is_inference()  # gradients may be taken through what is made of it
            torch.testing.assert_close(ours, expected)
        for parameter in ppo.policy.parameters():  # as an update does
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


def test_graphs_are_for_rollouts_of_one_size():
    ppo = made(MlpPolicy, Box(-1, 1, (5,)), Box(-1, 1, (2,)))
    observations, noise = rollout_of(ppo, 5, 4, (5,))
    graphs = ActingGraphs(ppo.policy, ppo.distribution, observations, noise, WHOLE, compiled=False)
    with pytest.raises(LayoutError):  # other environments
        graphs(*rollout_of(ppo, 5, 3, (5,)), WHOLE)
    with pytest.raises(LayoutError):
        graphs(observations, noise, TWO_POOLS)


def test_a_cnn_of_two_trunks_values_all_steps_at_once():
    policy = lambda *spaces: CnnPolicy(*spaces, size="tiny", shared_trunk=False)  # noqa: E731
    ppo = made(policy, Box(0, 255, (4, 36, 36), np.uint8), Discrete(3))
    observations = torch.randint(0, 255, (4, 2, 4, 36, 36), dtype=torch.uint8)
    noise = ppo.distribution.noise(3, 2)
    ppo._acting = ActingGraphs(
        ppo.policy, ppo.distribution, observations, noise, WHOLE, compiled=False
    )
    acting = ppo.acting(observations, noise)
    for step in range(3):
        acting.act(step, 0)
    expected = torch.stack([ppo.act(step, noise[0])[2] for step in observations])
    torch.testing.assert_close(acting.outputs()[3], expected)


@pytest.mark.parametrize("pools", [WHOLE, TWO_POOLS], ids=["whole", "two_pools"])
def test_observations_go_to_another_device_once(pools: Any):
    """Here the other device is the CPU by another name: copies are made as to any other."""
    ppo = made(MlpPolicy, Box(-1, 1, (5,)), Box(-1, 1, (2,)))
    observations, noise = rollout_of(ppo, 3, 4, (5,))
    arriving = torch.full_like(observations, torch.nan)
    there = torch.device("cpu", 0)
    for _ in range(2):
        acting = ModuleActing(ppo.act, arriving, noise, there, pools)
        expected = ModuleActing(ppo.act, observations, noise, ppo.device)
        with torch.inference_mode():
            for step in range(3):
                arriving[step] = observations[step]
                parts = [acting.act(step, pool) for pool in range(len(pools))]
                assert np.allclose(np.concatenate(parts), expected.act(step), atol=1e-6)
                arriving[step] = torch.nan
        arriving[3] = observations[3]
        for ours, theirs in zip(acting.outputs(), expected.outputs(), strict=True):
            torch.testing.assert_close(ours, theirs)
        for parameter in ppo.policy.parameters():  # as an update does
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_policy_acts_in_the_precision_in_which_it_learns(graphs: bool):
    ppo = made(MlpPolicy, Box(-1, 1, (5,)), Discrete(3))
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, barebones=True)
    ppo._trainer = trainer
    observations, noise = rollout_of(ppo, 2, 4, (5,))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = ppo.policy(observations[0], None)[1].float()
        if graphs:  # made where the policy learns
            ppo._acting = ActingGraphs(
                ppo.policy, ppo.distribution, observations, noise, WHOLE, compiled=False
            )
    acting = ppo.acting(observations, noise)
    assert isinstance(acting, ModuleActing) != graphs
    for step in range(2):
        acting.act(step, 0)
    torch.testing.assert_close(acting.outputs()[3][0], expected)
    assert not torch.allclose(ppo.policy(observations[0], None)[1], expected, atol=1e-4)


@pytest.mark.heavy
@pytest.mark.slow
def test_a_module_can_be_copied_while_it_trains():
    ppo = made(lambda *spaces: MlpPolicy(*spaces, shared_trunk=True), Box(-1, 1, (5,)), Discrete(3))
    observations, noise = rollout_of(ppo, 2, 4, (5,))
    ppo._acting = ActingGraphs(
        ppo.policy, ppo.distribution, observations, noise, WHOLE, compiled=True
    )
    again = copy.deepcopy(ppo)
    assert isinstance(again.acting(observations, noise), ModuleActing)
    torch.testing.assert_close(again.state_dict(), ppo.state_dict())


@pytest.mark.heavy
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_act_on_a_gpu_as_the_policy_does():
    ppo = made(MlpPolicy, Box(-1, 1, (5,)), Discrete(3)).to("cuda")
    observations, noise = rollout_of(ppo, 5, 4, (5,))
    example = observations.to("cuda"), noise, TWO_POOLS
    graphs = ActingGraphs(ppo.policy, ppo.distribution, *example, compiled=False)
    rollout = observations.pin_memory(), noise
    as_module = ModuleActing(ppo.act, *rollout, ppo.device, TWO_POOLS)
    as_graphs = graphs(*rollout, TWO_POOLS)
    with torch.inference_mode():
        for step, pool in itertools.product(range(5), range(2)):
            actions = as_graphs.act(step, pool)
            np.testing.assert_array_equal(actions, as_module.act(step, pool))
    torch.testing.assert_close(as_graphs.outputs(), as_module.outputs())
