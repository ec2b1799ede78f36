"""The rollouts of a run as what Lightning iterates over: one batch, one iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import distributed
from ppo1_lightning.errors import DivergenceError, SimulationError
from ppo1_lightning.rollouts.budget import Budget
from ppo1_lightning.rollouts.collector import Actor, Collector, Rollout
from ppo1_lightning.rollouts.seeding import generator
from ppo1_lightning.simulators.base import Simulator
from ppo1_lightning.system import start_up


def _without_copies(rollout: Rollout, num_envs: int) -> Rollout:
    """Leave out what other ranks have too: no transition, and no episode."""
    copies = distributed.own_copies(num_envs)
    if copies:
        rollout.valid[:, -copies:] = False
        rollout.episode_returns[:, -copies:] = torch.nan
        rollout.episode_lengths[:, -copies:] = torch.nan
    return rollout._replace(num_envs=num_envs)


class RolloutDataset(IterableDataset[Rollout]):
    """Yields this rank's share of every iteration's rollout, until the budget is spent.

    It has a length, without which Lightning would collect one rollout ahead, with a stale policy.
    The simulator lives here and not in the iterator, which Lightning makes anew every epoch.

    Args:
        make_simulator: makes the simulator of this rank's environments, when the first rollout is
            collected and so in the process that steps it.
        actor: the policy and the counters of the run, read when a rollout is collected.
        num_envs: of all ranks together.
        num_steps: T.
        seed: of the run; action noise is drawn for all environments, of which a rank takes its
            own, so that any number of ranks acts alike.
    """

    def __init__(
        self,
        make_simulator: Callable[[], Simulator],
        actor: Actor,
        budget: Budget,
        *,
        num_envs: int,
        num_steps: int,
        seed: int,
    ) -> None:
        self._make_simulator = make_simulator
        self._actor = actor
        self._budget = budget
        self._num_envs, self._num_steps, self._seed = num_envs, num_steps, seed
        self._collector: Collector | None = None
        self.seconds_to_first_step: float | None = None  # see `system.StartUp`

    def __len__(self) -> int:
        """Return the iterations of the whole run, those before a resume included."""
        counters = self._actor.counters
        left = self._budget.iterations_left(counters, self._num_envs * self._num_steps)
        return counters.iterations + left

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self._next, None)  # no generator: a copy of a Trainer holds one of these

    def _next(self) -> Rollout | None:
        spent = self._budget.fraction_spent(self._actor.counters) >= 1
        try:
            return None if spent else self.collect()
        except StopIteration as error:  # of a policy, say: `iter` takes it for the end of the data
            raise RuntimeError("StopIteration in a rollout") from error

    def state_dict(self) -> dict[str, int]:
        """Return nothing: what a resumed run needs to know is in the actor's counters."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take nothing back; with it, Lightning knows that a run can be resumed anywhere."""

    def collect(self) -> Rollout:
        """Collect the next rollout.

        Raises:
            SimulationError: a reward or an observation is not finite, on whichever rank.
            DivergenceError: an action is not finite, for finite observations, likewise.
        """
        return distributed.fail_together(self._collect, self._actor.device)

    def _collect(self) -> Rollout:
        counters = self._actor.counters
        iteration = counters.iterations + 1
        try:
            if self._collector is None:
                simulator = self._make_simulator()
                state = self._actor.initial_state(simulator.num_envs)
                self._collector = Collector(simulator, state)
                self.seconds_to_first_step = start_up.end()
            rollout = self._collector.collect(
                self._actor.acting,
                self._noise(counters.iterations),
                pin_memory=self._actor.device.type == "cuda",
                policy_version=counters.iterations,
                fraction_spent=self._budget.fraction_spent(counters),
            )
            return _without_copies(rollout, self._num_envs)
        except SimulationError as error:
            environment = distributed.own_environments(self._num_envs)[error.environment]
            raise SimulationError(error.problem, environment, iteration) from error
        except DivergenceError as error:
            raise DivergenceError(f"{error} in iteration {iteration}", undone=False) from error

    def _noise(self, iteration: int) -> Tensor:
        stream = generator(self._seed, "actions", iteration)
        noise = self._actor.distribution.noise(self._num_steps, self._num_envs, generator=stream)
        if distributed.world_size() == 1:
            return noise
        return noise[:, distributed.own_environments(self._num_envs)]

    def keep_wrapper_states(self) -> None:
        """Let the actor know what the wrappers of all ranks' environments have counted by now."""
        if self._collector is None:
            return
        own = self._collector.simulator.wrapper_states()
        everyone = [own] if own == [] else distributed.gather_objects(own)
        if None not in everyone:
            found = [state for states in everyone for state in states or ()]
            # copies of other ranks' come last
            self._actor.wrapper_states = found[: self._num_envs] if any(found) else []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the simulator, which belongs to one process, so that a copy can be made."""
        return {**vars(self), "_collector": None}

    def close(self) -> None:
        """Free the simulator."""
        if self._collector is not None:
            self.keep_wrapper_states()
            self._collector.simulator.close()
            self._collector = None
