"""Collecting rollouts: T steps of N environments with the current policy, one Lightning batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import distributed
from ppo1_lightning.errors import ConfigurationError, DivergenceError, SimulationError
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.normalization import StepNormalizer
from ppo1_lightning.rollouts.acting import Acting
from ppo1_lightning.rollouts.budget import Budget, Counters
from ppo1_lightning.rollouts.episodes import EpisodeTracker
from ppo1_lightning.rollouts.seeding import generator
from ppo1_lightning.simulators.base import Simulator


class Rollout(NamedTuple):
    """T steps of this rank's N environments (ppo1's segment, ``traj_segment_generator``).

    Rows with ``valid=False`` are EnvPool's resets, not transitions: their observation is the
    *final* one of the episode that ended in the row before, so their value is V(final).
    """

    observations: Tensor  # [T, N, *observation_shape] float32 or uint8, as the policy saw them
    actions: Tensor  # [T, N, *action_shape], as sampled: neither clipped nor scaled
    rewards: Tensor  # [T, N] float32, scaled
    values: Tensor  # [T + 1, N] float32, as the policy saw them while it acted
    dist_params: Tensor  # [T, N, P] float32, of the action distribution, likewise
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool, never together with terminated
    valid: Tensor  # [T, N] bool
    episode_returns: Tensor  # [T, N] float32, unscaled, NaN but where an episode ended
    episode_lengths: Tensor  # [T, N] float32, likewise
    policy_version: int  # updates of the policy when collection started
    fraction_spent: float  # of the budget when collection started, in [0, 1]
    num_envs: int | None = None  # of all ranks; None: N on each

    @property
    def rows(self) -> int:
        """Rows of all ranks."""
        num_steps, own_envs = self.rewards.shape
        return num_steps * (self.num_envs or own_envs * distributed.world_size())


class Actor(Protocol):
    """What collection asks of the algorithm; `PPO` is one."""

    distribution: Distribution
    counters: Counters
    observation_normalizer: StepNormalizer | None  # before the policy, step by step

    @property
    def device(self) -> torch.device:
        """Return where the policy is."""
        ...

    def acting(self, observations: Tensor, noise: Tensor, pools: Sequence[slice]) -> Acting:
        """Return how the policy acts in the coming rollout.

        Args:
            observations: ``[T + 1, N, *observation_shape]`` on the CPU, written step by step.
            noise: ``[T, N, noise_size]``.
            pools: the environments that it acts in at once, of the same number and in order.
        """
        ...


class Collector:
    """Steps a simulator with a policy and goes on where the last rollout ended."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._observation = simulator.reset()
        self._episodes = EpisodeTracker(simulator.num_envs)

    @torch.no_grad()
    def collect(
        self,
        acting: Callable[[Tensor, Tensor, Sequence[slice]], Acting],
        noise: Tensor,
        *,
        pin_memory: bool = False,
        policy_version: int,
        fraction_spent: float,
    ) -> Rollout:
        """Collect one step for each row of ``noise [T, N, noise_size]``; see `Actor.acting`.

        Args:
            pin_memory: whether observations arrive where a GPU can fetch them by itself.

        Raises:
            SimulationError: from the simulator, a reward or an observation is not finite.
            DivergenceError: an action of the policy is not finite, for finite observations.
        """
        num_steps = len(noise)
        first = torch.from_numpy(self._observation)
        # the first observation and the one after each step
        shape = (num_steps + 1, *first.shape)
        arriving = torch.empty(shape, dtype=first.dtype, pin_memory=pin_memory)
        arriving[0] = first
        array = arriving.numpy()
        pools = list(enumerate(self.simulator.pools))
        acting_now = acting(arriving, noise, self.simulator.pools)
        act, send, receive = acting_now.act, self.simulator.send, self.simulator.receive
        steps_taken, chosen = [], None

        # Nothing else belongs into this loop: what can wait until its end is done for all steps.
        # One pool is simulated while the policy acts in the next.
        try:
            with torch.inference_mode(), self.simulator.stepping():
                for step in range(num_steps):
                    for pool, envs in pools:
                        if step:
                            steps_taken.append(receive(array[step, envs], pool))
                        chosen = act(step, pool)
                        send(chosen, pool)
                        chosen = None
                for pool, envs in pools:
                    steps_taken.append(receive(array[num_steps, envs], pool))
            observations, actions, dist_params, values = acting_now.outputs()
        except ConfigurationError:  # an action that is no number may come from an observation
            rows, some = divmod(len(steps_taken), len(pools))
            if some:  # of the last row only that of some pools is there
                array[rows + 1, self.simulator.pools[some].start :] = 0
            self.simulator.check_observations(array[: rows + 1 + bool(some)])
            if chosen is not None:  # else the policy itself has refused
                _check_actions(chosen)
            raise

        self._observation = array[-1].copy()
        steps = self.simulator.settle(steps_taken, array[1:])
        returns, lengths = self._episodes.update(steps.raw_reward, steps.valid, steps.episode_over)
        return Rollout(
            observations=observations[:-1],
            actions=actions,
            rewards=torch.from_numpy(steps.reward),
            values=values,
            dist_params=dist_params,
            terminated=torch.from_numpy(steps.terminated),
            truncated=torch.from_numpy(steps.truncated),
            valid=torch.from_numpy(steps.valid),
            episode_returns=torch.from_numpy(returns),
            episode_lengths=torch.from_numpy(lengths),
            policy_version=policy_version,
            fraction_spent=fraction_spent,
        )


def _check_actions(actions: NDArray[Any]) -> None:
    """Raise `DivergenceError` where ``actions [N, ...]`` hold a NaN or an infinity."""
    bad = actions[~np.isfinite(actions)]
    if len(bad):
        raise DivergenceError(f"the policy diverged: it chose the action {bad[0]}")


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

    def __len__(self) -> int:
        """Return the iterations of the whole run, those before a resume included."""
        counters = self._actor.counters
        left = self._budget.iterations_left(counters, self._num_envs * self._num_steps)
        return counters.iterations + left

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self._next, None)  # no generator: a copy of a Trainer holds one of these

    def _next(self) -> Rollout | None:
        spent = self._budget.fraction_spent(self._actor.counters) >= 1
        return None if spent else self.collect()

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
                self._collector = Collector(self._make_simulator())
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the simulator, which belongs to one process, so that a copy can be made."""
        return {**vars(self), "_collector": None}

    def close(self) -> None:
        """Free the simulator."""
        if self._collector is not None:
            self._collector.simulator.close()
            self._collector = None
