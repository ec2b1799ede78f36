"""Whole episodes of a policy on raw rewards: as many from each environment, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import distributed, simulators
from ppo1_lightning.errors import check_flag, check_integer, check_memory
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.base import ActionOutputs
from ppo1_lightning.rollouts.acting import ModuleActing
from ppo1_lightning.rollouts.collector import Collector
from ppo1_lightning.rollouts.seeding import environment_seeds, generator
from ppo1_lightning.rollouts.sizes import ROW_BYTES
from ppo1_lightning.simulators.base import EnvironmentSpec
from ppo1_lightning.simulators.placement import own_cores
from ppo1_lightning.simulators.wrapper_state import own_wrapper_states

log = logging.getLogger("ppo1_lightning")

BLOCK = 64
"""Steps between two looks at which episodes have ended."""

EPISODE_BYTES = 64
"""Of an episode that was played: its return and length, and again where they are put together."""

RESAMPLES = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Evaluation:
    """How a policy is evaluated.

    Each environment plays a number of episodes that is fixed beforehand: those that happen to end
    first would be the short ones.

    Attributes:
        episodes: whole episodes (games), all devices together.
        num_envs: environments among which they are divided, all devices together.
        deterministic: take the most likely action instead of sampling one.
        max_steps: of an episode, which then counts as it stands; its environment, which cannot be
            told to begin anew, plays no more. It is looked at every `BLOCK` steps, so that one may
            have some more. None: as long as it takes, for ever perhaps.

    Raises:
        ConfigurationError: a number that is not positive or larger than memory, or no flag.
    """

    episodes: int = 100
    num_envs: int = 10
    deterministic: bool = False
    max_steps: int | None = 100_000

    def __post_init__(self) -> None:
        episodes = check_integer("episodes", self.episodes, at_least=1)
        num_envs = check_integer("num_envs", self.num_envs, at_least=1)
        object.__setattr__(self, "episodes", episodes)  # 1e2 is one
        object.__setattr__(self, "num_envs", num_envs)
        envs = min(episodes, num_envs)
        check_flag("deterministic", self.deterministic)
        if self.max_steps is not None:
            max_steps = check_integer("max_steps", self.max_steps, at_least=1)
            object.__setattr__(self, "max_steps", max_steps)
        check_memory(
            f"an evaluation of {episodes:,} episodes in {envs:,} environments",
            episodes * EPISODE_BYTES + envs * BLOCK * ROW_BYTES,
        )

    def shares(self) -> list[int]:
        """Return how many episodes each environment plays; none plays none."""
        count = min(self.num_envs, self.episodes)
        return [self.episodes // count + (i < self.episodes % count) for i in range(count)]


class Episodes(NamedTuple):
    """Episodes that were played, in an order that no device count changes."""

    returns: Tensor  # [episodes] float64, of unscaled and unclipped rewards
    lengths: Tensor  # [episodes] float64, in transitions
    cut_off: int = 0  # of them had not ended

    def summary(self) -> dict[str, float]:
        """Return mean, standard deviation and the mean's 95 % interval; NaN for one episode."""
        returns = self.returns.cpu().numpy()
        low, high = mean_interval(returns)
        return {
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else float("nan"),
            "return_low": low,
            "return_high": high,
            "length_mean": self.lengths.mean().item(),
            "episodes": float(len(returns)),
        }


def mean_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron 1979), NaN for one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Player(Protocol):
    """What an evaluation asks of the algorithm; `PPO` is one."""

    distribution: Distribution
    wrapper_states: list[dict[str, Any]]  # of training, see `Simulator.wrapper_states`

    @property
    def device(self) -> torch.device:
        """Return where the policy is."""
        ...

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the state ``[N, S]`` in which episodes begin."""
        ...

    def act(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Sample actions, see `PPO.act`."""
        ...

    def act_greedily(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Return the most likely actions, likewise; the noise is not looked at."""
        ...


class EvaluationDataset(IterableDataset[Episodes]):
    """Yields one batch: the episodes of a whole evaluation, the same one each time for a policy.

    It shares nothing with training: simulators of its own, with seeds that training never uses,
    and a random stream of its own. Environments are divided among the ranks, and every rank gets
    all episodes.
    """

    def __init__(
        self, env: EnvironmentSpec, evaluation: Evaluation, player: Player, *, seed: int
    ) -> None:
        self._env, self._evaluation, self._player, self._seed = env, evaluation, player, seed

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Episodes]:
        yield self.play()

    @torch.no_grad()
    def play(self) -> Episodes:
        """Play all episodes.

        Raises:
            SimulationError: a reward or an observation is not finite, on whichever rank.
            DivergenceError: an action is not finite, for finite observations, likewise.
        """
        shares = torch.tensor(self._evaluation.shares())
        own = torch.arange(len(shares))[distributed.rank() :: distributed.world_size()]
        table = torch.zeros(3, len(shares), int(shares.max()), dtype=torch.float64)
        device = self._player.device
        distributed.fail_together(lambda: self._fill(table, own, shares), device)
        returns, lengths, cut_off = distributed.all_sum(table.to(device)).cpu()
        played = lengths > 0
        episodes = Episodes(returns[played], lengths[played], int(cut_off.sum()))
        if episodes.cut_off and distributed.rank() == 0:
            log.warning(
                "%d of %d episodes had not ended after max_steps=%d and count as they stood; a "
                "time limit would end them",
                *(episodes.cut_off, len(episodes.returns), self._evaluation.max_steps),
            )
        return episodes

    def _fill(self, table: Tensor, own: Tensor, shares: Tensor) -> None:
        """Write this rank's episodes to ``table [(return, length, cut off), env, episode]``."""
        if not len(own):
            return
        seeds = environment_seeds(self._seed, len(shares), purpose="evaluation")
        env = replace(self._env, num_pools=1)  # its number of environments is another
        own_seeds = [seeds[i] for i in own.tolist()]
        cores = own_cores(*distributed.local_ranks())
        states = own_wrapper_states(self._player.wrapper_states, own.tolist())
        simulator = simulators.make_simulator(env, own_seeds, cores=cores, wrapper_states=states)
        deterministic = self._evaluation.deterministic
        act = self._player.act_greedily if deterministic else self._player.act
        device = self._player.device
        played = torch.zeros_like(shares)
        try:
            collector, block = Collector(simulator, self._player.initial_state(len(own))), 0
            while (played < shares)[own].any():
                noise = self._noise(block, len(shares))[:, own]
                rollout = collector.collect(
                    lambda observations, noise, *rest: ModuleActing(
                        act, observations, noise, device, *rest
                    ),
                    noise,
                    policy_version=0,
                    fraction_spent=0.0,
                )
                outcome = torch.stack([rollout.episode_returns, rollout.episode_lengths])
                for t, column in (~outcome[1].isnan()).nonzero().tolist():
                    env = int(own[column])
                    if played[env] < shares[env]:
                        table[:2, env, played[env]] = outcome[:, t, column].double()
                        played[env] += 1
                self._cut_off(table, own, shares, played, *collector.under_way())
                block += 1
        finally:
            simulator.close()

    def _cut_off(
        self,
        table: Tensor,
        own: Tensor,
        shares: Tensor,
        played: Tensor,
        returns: NDArray[np.float64],
        lengths: NDArray[np.float64],
    ) -> None:
        """Let episodes that are too long count as they stand, as the last of their environments.

        Args:
            returns, lengths: of the episodes under way, one for each of ``own``.
        """
        most = self._evaluation.max_steps
        if most is None:
            return
        for column in np.flatnonzero(lengths >= most):
            env = int(own[column])
            if played[env] < shares[env]:
                table[:, env, played[env]] = torch.tensor([returns[column], lengths[column], 1.0])
                played[env] = shares[env]

    def _noise(self, block: int, num_envs: int) -> Tensor:
        stream = generator(self._seed, "evaluation actions", block)
        return self._player.distribution.noise(BLOCK, num_envs, generator=stream)
