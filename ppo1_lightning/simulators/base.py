"""The one interface between the algorithm and every simulator."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ppo1_lightning.errors import (
    ConfigurationError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
)
from ppo1_lightning.policies.spaces import row_space

THREADS_PER_CORE = 32

Backend = Literal["auto", "envpool", "gymnasium"]


@dataclass(frozen=True)
class EnvironmentSpec:
    """Which environment to run and how its data are prepared: plain values that can be pickled.

    Raises:
        ConfigurationError: a value of the wrong type or out of range.

    Attributes:
        id: name of the environment, such as ``"Pong-v5"`` or ``"mypackage:MyEnv-v0"``.
        backend: ``"envpool"``, ``"gymnasium"`` or ``"auto"`` (EnvPool where it has the id and
            there are no wrappers).
        options: further arguments of the simulator's own constructor.
        wrappers: of Gymnasium's environments, the innermost first: functions from an environment
            to a wrapped one, such as ``partial(FrameStackObservation, stack_size=4)``.
        reward_scale: factor on the rewards that are learned from; reported returns are unscaled.
        rescale_actions: let -1 and 1 of a policy's Box action stand for the bounds, where there are
            both.
        clip_actions: clip Box actions to the space's bounds before the simulator sees them; the
            stored action stays unclipped.
        observation_keys: the leaves of a Dict observation to concatenate, in this order, such as
            ``"goal"`` or ``"robot.arm"``; a name above some stands for all of them; None takes all
            that are numbers, in the space's order.
        num_pools: into how many pools a rank's environments are divided: with 2, one half is
            stepped while the policy acts in the other (double buffering).
        num_threads: EnvPool's worker threads for each pool; None takes one for classic control and
            toy texts, which a second one only slows, else min(environments, the cores divided by
            the ranks on this machine).
        pin_threads: keep EnvPool's threads each on a core, see `placement`.
        timeout: seconds that a step or a reset of all environments of a pool, or their making or
            closing, may last before the command line ends the run: they hang. A library call waits.
    """

    id: str
    backend: Backend = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] = ()
    reward_scale: float = 1.0
    rescale_actions: bool = False
    clip_actions: bool = False
    observation_keys: Sequence[str] | None = None
    num_pools: int = 1
    num_threads: int | None = None
    pin_threads: bool = True
    timeout: float = 1200.0  # below the half hour for which gloo waits for another rank

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ConfigurationError(f"env.id={self.id!r} is not a name such as 'CartPole-v1'")
        check_choice("env.backend", self.backend, get_args(Backend))
        if not isinstance(self.options, Mapping) or not all(
            isinstance(name, str) for name in self.options
        ):
            raise ConfigurationError(
                f"env.options={self.options!r} is not a mapping from names to values"
            )
        _check_wrappers(self.wrappers, self.backend)
        check_number("env.reward_scale", self.reward_scale, above=0)
        check_flag("env.rescale_actions", self.rescale_actions)
        check_flag("env.clip_actions", self.clip_actions)
        keys = self.observation_keys
        if keys is not None and (isinstance(keys, str) or not isinstance(keys, Sequence)):
            raise ConfigurationError(f"env.observation_keys={keys!r} is not a list of names")
        pools = check_integer("env.num_pools", self.num_pools, at_least=1)
        object.__setattr__(self, "num_pools", pools)  # 1e0 is one
        if self.num_threads is not None:
            threads = check_integer("env.num_threads", self.num_threads, at_least=1)
            object.__setattr__(self, "num_threads", threads)
            most = THREADS_PER_CORE * (os.cpu_count() or 1)
            if self.num_threads > most:  # it would end the process
                raise ConfigurationError(
                    f"env.num_threads={self.num_threads} is more than this machine's cores can "
                    f"step, expected at most {most}, {THREADS_PER_CORE} for each"
                )
        check_flag("env.pin_threads", self.pin_threads)
        check_number("env.timeout", self.timeout, above=0)


def _check_wrappers(wrappers: object, backend: Backend) -> None:
    if not isinstance(wrappers, Sequence) or not all(map(callable, wrappers)):
        raise ConfigurationError(
            f"env.wrappers={wrappers!r} is not a list of functions from an environment to a "
            "wrapped one, expected [{_target_: gymnasium.wrappers.FrameStackObservation, "
            "_partial_: true, stack_size: 4}] or its like"
        )
    if wrappers and backend == "envpool":
        raise ConfigurationError(
            "env.wrappers cannot wrap EnvPool's environments, expected env.backend=gymnasium, or "
            "EnvPool's own env.options (of Atari stack_num, img_height, ...)"
        )


RawStep = Sequence[NDArray[Any]]
"""What a library reports of one step beside the observation: its own fields, ``[N]`` each."""


class Step(NamedTuple):
    """What one step of N environments returns, or T steps with a T in front of all shapes.

    A row with ``valid=False`` is not a transition: the environment ended in the step before,
    ignored its action and returned the first observation of the next episode. Its rewards are 0
    and its flags false. The row before it holds the true final observation. No later step changes
    these arrays.
    """

    observation: NDArray[Any]  # [N, ...] float32 or uint8, after the step
    reward: NDArray[np.float32]  # [N], scaled: what is learned from
    terminated: NDArray[np.bool_]  # [N], the return ends here
    truncated: NDArray[np.bool_]  # [N], a time limit; never together with terminated
    valid: NDArray[np.bool_]  # [N]
    raw_reward: NDArray[np.float32]  # [N], unclipped and unscaled: what is reported
    episode_over: NDArray[np.bool_]  # [N], the whole game is over (Atari: not only a life)


class Simulator(ABC):
    """N environments, with automatic resets as rows of their own (NEXT_STEP).

    They are divided into pools of the same size, stepped one pool at a time and settled together.

    Attributes:
        num_envs: N.
        pools: the environments of each pool, those of the first one first.
        observation_space: of one environment: an image or a vector of float32 (see
            `entries.Entry`); or a Dict with more than one of ``vector``, ``image``, ``image_2``,
            ... and ``action_mask``, see `spaces.parts_of`.
        action_space: of one environment: Box (float32), Discrete, MultiDiscrete or MultiBinary,
            of one dimension and, where discrete, from 0.
    """

    num_envs: int
    pools: Sequence[slice]
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    @cached_property
    def row_space(self) -> gymnasium.spaces.Box:
        """What one observation is as an array."""
        return row_space(self.observation_space)

    @abstractmethod
    def reset(self) -> NDArray[Any]:
        """Start every environment and return the observations [N, ...].

        The first call starts from the seeds, a later one goes on with each environment's
        generator. The step after it has valid rows only.
        """

    @abstractmethod
    def send(self, action: NDArray[Any], pool: int) -> None:
        """Start a step of a pool's n environments with ``action`` [n, *action_space.shape].

        For loops that step often: each `send` is followed by a `receive` of the same pool, and
        `settle` must be given these steps, all of them, before anything else is asked of the
        simulator.

        Raises:
            ConfigurationError: an action of the wrong shape or dtype, out of range or not finite.
            RuntimeError: not reset yet, or closed.
        """

    @abstractmethod
    def receive(self, observation: NDArray[Any], pool: int) -> RawStep:
        """Wait for the step that `send` has started, and return what came of it.

        Args:
            observation: ``[n, ...]``, filled with the one after the step.
        """

    @abstractmethod
    def ended(self, step: RawStep) -> NDArray[np.bool_]:
        """Tell in which of a pool's environments ``[n]`` a step ended the episode.

        What they returned is its last observation; the next step is a reset.
        """

    @abstractmethod
    def settle(self, steps: Sequence[RawStep], observations: NDArray[Any]) -> Step:
        """Check and mask T steps at once.

        Args:
            steps: as `receive` returned them: of every pool, then of every pool the next step, ...
            observations: ``[T, N, ...]``, as it filled them.

        Raises:
            SimulationError: a reward or an observation that is not finite.
        """

    @abstractmethod
    def check_observations(self, observations: NDArray[Any]) -> None:
        """Raise `SimulationError` where one of ``[T, N, ...]`` is not finite."""

    def step(self, action: NDArray[Any]) -> Step:
        """Step every environment with ``action`` [N, *action_space.shape], and settle it.

        Raises:
            ConfigurationError: an action of the wrong shape or dtype, out of range or not finite.
            SimulationError: a reward or an observation that is not finite.
            RuntimeError: not reset yet, or closed.
        """
        space, action = self.row_space, np.asarray(action)
        observations = np.empty((1, self.num_envs, *space.shape), space.dtype)
        several = len(self.pools) > 1
        actions = np.array_split(action, len(self.pools)) if several else [action]
        for pool, its_action in enumerate(actions):
            self.send(its_action, pool)
        steps = [self.receive(observations[0, envs], i) for i, envs in enumerate(self.pools)]
        settled = self.settle(steps, observations)
        return Step(*(field[0] for field in settled))

    def stepping(self) -> AbstractContextManager[None]:
        """Return a context for loops that step often, in which that may be faster."""
        return nullcontext()

    def wrapper_states(self) -> list[dict[str, Any]] | None:
        """Return what each environment's wrappers have counted, see `wrapper_state`.

        None where they cannot be asked: in the middle of a step, or at an end. Nothing where the
        library has no wrappers.
        """
        return []

    def render(self) -> NDArray[np.uint8]:
        """Return a picture ``[H, W, 3]`` of the first environment as it is after the last step.

        Raises:
            ConfigurationError: the simulator was not made for it, or cannot do it.
        """
        raise ConfigurationError(f"{type(self).__name__} cannot be rendered")

    @abstractmethod
    def close(self) -> None:
        """Free the environments and their threads."""
