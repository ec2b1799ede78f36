"""Gain and KL around a policy: as graphs, and over two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from ranks import run_on_ranks
from torch import Tensor

from ppo1_lightning import TRPO, MlpPolicy
from ppo1_lightning.algorithms.surface import EagerSurface, SummedSurface
from ppo1_lightning.algorithms.update import Objective
from ppo1_lightning.fast import make_surfaces
from ppo1_lightning.rollouts.segment import Minibatch

SPACES = [Box(-1, 1, (2,)), Discrete(3), MultiDiscrete([2, 3]), MultiBinary(2)]


def small(space: Any) -> TRPO:
    torch.manual_seed(0)
    module = TRPO(
        lambda *spaces: MlpPolicy(*spaces, hidden_size=4, num_layers=1),
        seed=1,
        ent_coef=0.1,
        observation_space=Box(-1, 1, (3,)),
        action_space=space,
    )
    with torch.no_grad():
        for parameter in module.policy.parameters():  # the action head starts near 0
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return module


def minibatch(module: TRPO, rows: int) -> Minibatch:
    generator = torch.Generator().manual_seed(rows)
    observations = torch.randn(rows, 3, generator=generator)
    noise = module.distribution.noise(1, rows, generator=generator)[0]
    actions, dist_params, values = (t.clone() for t in module.act(observations, noise)[:3])
    return Minibatch(
        observations=observations,
        actions=actions,
        advantages=torch.randn(rows, generator=generator),
        returns=torch.zeros(rows),
        old_values=values,
        old_dist_params=dist_params,
        old_log_probs=module.distribution.log_prob(dist_params, actions),
        weights=torch.full((rows,), 1 / rows),
        starts=torch.zeros(rows, dtype=torch.bool),
        state=torch.zeros(rows, 0),
    )


def surfaces(module: TRPO, *, compiled: bool = False) -> tuple[Any, EagerSurface, str]:
    batch, fisher = minibatch(module, 12), minibatch(module, 5)
    parameters = module.acting_parameters
    eager = EagerSurface(module.gain_and_kl, parameters, batch, fisher)
    objective = Objective(module, module.gain_and_kl)
    graphs, reason = make_surfaces(
        objective,
        parameters.parameters,
        eager,
        (batch, fisher),
        compiled=compiled,
        was_kept=True,
    )
    return graphs and graphs(batch, fisher), eager, reason


@pytest.mark.parametrize(
    ("space", "compiled"),
    [
        *(pytest.param(space, False, id=type(space).__name__) for space in SPACES),
        pytest.param(SPACES[0], True, id="compiled", marks=pytest.mark.heavy),
    ],
)
def test_graphs_are_what_autograd_finds(space: Any, compiled: bool) -> None:
    module = small(space)
    graphs, eager, reason = surfaces(module, compiled=compiled)
    assert not reason
    parameters = module.acting_parameters
    for scale in (1.0, 1.01):  # they see what has moved
        parameters.set(scale * parameters.get())
        for ours, theirs in zip(graphs.gain_and_gradient(), eager.gain_and_gradient(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(graphs.gain_and_kl(), eager.gain_and_kl(), atol=1e-6, rtol=1e-5)
        vectors = torch.randn(2, len(parameters.get()))
        products = graphs.hessian(), eager.hessian()
        for vector in vectors:
            ours, theirs = (product(vector) for product in products)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_policy_that_draws_random_numbers_is_found() -> None:
    class Noisy(MlpPolicy):
        def forward(self, observation: Tensor, *memory: Any) -> Any:  # type: ignore[override]
            return super().forward(observation + torch.rand_like(observation), *memory)

    module = small(Discrete(3))
    module.policy.__class__ = Noisy
    graphs, _, reason = surfaces(module)
    assert graphs is None
    assert "differs from the eager one" in reason


@pytest.mark.heavy
def test_ranks_see_what_one_sees() -> None:
    batch = minibatch(small(Discrete(3)), 6)
    alone = seen(batch)
    for by_rank in run_on_ranks(seen_on_rank, 2, batch):
        for ours, theirs in zip(by_rank, alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def seen(batch: Minibatch) -> list[Tensor]:
    module = small(Discrete(3))
    parameters = module.acting_parameters
    surface = SummedSurface(EagerSurface(module.gain_and_kl, parameters, batch, batch))
    gain, gradient = surface.gain_and_gradient()
    direction = torch.linspace(-1, 1, len(gradient))
    numbers = torch.tensor([gain, *surface.gain_and_kl()])
    return [numbers, gradient, surface.hessian()(direction)]


def seen_on_rank(rank: int, batch: Minibatch) -> list[Tensor]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = slice(2) if rank == 0 else slice(2, None)
    found = seen(Minibatch(*(field[rows] for field in batch)))
    dist.destroy_process_group()
    return found
