"""Collecting rollouts: T steps of N environments with the current policy, one Lightning batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo1_lightning import distributed
from ppo1_lightning.errors import ConfigurationError, DivergenceError
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.normalization import StepNormalizer
from ppo1_lightning.rollouts.acting import Acting
from ppo1_lightning.rollouts.budget import Counters
from ppo1_lightning.rollouts.episodes import EpisodeTracker
from ppo1_lightning.simulators.base import RawStep, Simulator


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
    # Of a policy with memory; None: it has none.
    states: Tensor | None = None  # [T + 1, N, S] before each row
    starts: Tensor | None = None  # [T, N] bool: the row begins an episode

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
    wrapper_states: list[dict[str, Any]]  # of all environments, see `Simulator.wrapper_states`

    @property
    def device(self) -> torch.device:
        """Return where the policy is."""
        ...

    def acting(
        self,
        observations: Tensor,
        noise: Tensor,
        pools: Sequence[slice],
        *memory: Tensor,
    ) -> Acting:
        """Return how the policy acts in the coming rollout.

        Args:
            observations: ``[T + 1, N, *observation_shape]`` on the CPU, written step by step.
            noise: ``[T, N, noise_size]``.
            pools: the environments that it acts in at once, of the same number and in order.
            memory: of a policy that has any, its state ``[N, S]`` before the first step, and
                ``starts [T + 1, N]`` bool on the CPU, written step by step: where an episode
                begins.
        """
        ...

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the state ``[N, S]`` in which episodes begin, S = 0 for one without memory."""
        ...


class Collector:
    """Steps a simulator with a policy and goes on where the last rollout ended.

    Args:
        state: ``[N, S]`` of a policy with memory, before the first rollout.
    """

    def __init__(self, simulator: Simulator, state: Tensor | None = None) -> None:
        self.simulator = simulator
        self._observation = simulator.reset()
        self._episodes = EpisodeTracker(simulator.num_envs)
        self._state = state if state is not None and state.shape[-1] else None
        # Of the next row and the one after it: a reset row still belongs to the old episode.
        self._starts = np.zeros((2, simulator.num_envs), np.bool_)
        self._starts[0] = True

    def under_way(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what the episodes that have not ended have come to, see `EpisodeTracker`."""
        return self._episodes.under_way()

    @torch.no_grad()
    def collect(
        self,
        acting: Callable[..., Acting],
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
            DivergenceError: an action or the state of the policy is not finite, for finite
                observations.
        """
        num_steps = len(noise)
        first = torch.from_numpy(self._observation)
        # the first observation and the one after each step
        shape = (num_steps + 1, *first.shape)
        arriving = torch.empty(shape, dtype=first.dtype, pin_memory=pin_memory)
        arriving[0] = first
        array = arriving.numpy()
        pools = list(enumerate(self.simulator.pools))
        starts = np.empty((num_steps + 2, self.simulator.num_envs), np.bool_)
        starts[:2] = self._starts
        memory: tuple[Tensor, ...] = ()
        if self._state is not None:
            memory = self._state, torch.from_numpy(starts[:-1])
        acting_now = acting(arriving, noise, self.simulator.pools, *memory)
        act, send, receive = acting_now.act, self.simulator.send, self._receiver(starts)
        steps_taken, chosen = [], None

        # Nothing else belongs into this loop: what can wait until its end is done for all steps.
        # One pool is simulated while the policy acts in the next.
        try:
            with torch.inference_mode(), self.simulator.stepping():
                for step in range(num_steps):
                    for pool, envs in pools:
                        if step:
                            steps_taken.append(receive(array[step, envs], pool, step))
                        chosen = act(step, pool)
                        send(chosen, pool)
                        chosen = None
                for pool, envs in pools:
                    steps_taken.append(receive(array[num_steps, envs], pool, num_steps))
            observations, actions, dist_params, values, states = acting_now.outputs()
        except ConfigurationError:  # an action that is no number may come from an observation
            rows, some = divmod(len(steps_taken), len(pools))
            if some:  # of the last row only that of some pools is there
                array[rows + 1, self.simulator.pools[some].start :] = 0
            self.simulator.check_observations(array[: rows + 1 + bool(some)])
            if chosen is not None:  # else the policy itself has refused
                _check_actions(chosen)
            raise

        self._observation = array[-1].copy()
        if self._state is not None:
            self._state, self._starts = states[-1].clone(), starts[-2:].copy()
        steps = self.simulator.settle(steps_taken, array[1:])
        if self._state is not None:
            _check_state(self._state)
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
            states=None if self._state is None else states,
            starts=None if self._state is None else torch.from_numpy(starts[:-2]),
        )

    def _receiver(self, starts: NDArray[np.bool_]) -> Callable[[NDArray[Any], int, int], RawStep]:
        """Return what receives the step before row ``t`` and, for a memory, sees where it ends.

        Args:
            starts: ``[T + 2, N]``, written one row ahead.
        """
        receive, ended, pools = self.simulator.receive, self.simulator.ended, self.simulator.pools
        if self._state is None:
            return lambda observation, pool, t: receive(observation, pool)

        def receive_and_look(observation: NDArray[Any], pool: int, t: int) -> RawStep:
            step = receive(observation, pool)
            starts[t + 1, pools[pool]] = ended(step)
            return step

        return receive_and_look


def _check_state(state: Tensor) -> None:
    """Raise `DivergenceError` where a policy's state ``[N, S]`` holds a NaN or an infinity."""
    if state.is_floating_point() and not state.isfinite().all():
        bad = state[~state.isfinite()][0].item()
        raise DivergenceError(f"the policy diverged: its state is {bad}")


def _check_actions(actions: NDArray[Any]) -> None:
    """Raise `DivergenceError` where ``actions [N, ...]`` hold a NaN or an infinity."""
    bad = actions[~np.isfinite(actions)]
    if len(bad):
        raise DivergenceError(f"the policy diverged: it chose the action {bad[0]}")
