"""What all simulators share: the bookkeeping of invalid rows, rewards and finite values."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ppo1_lightning.errors import (
    ConfigurationError,
    SimulationError,
    nearest,
    one_line,
    whole_in_one_line,
)
from ppo1_lightning.simulators.actions import ActionAdapter, masked_choices
from ppo1_lightning.simulators.base import EnvironmentSpec, RawStep, Simulator, Step
from ppo1_lightning.simulators.bounds import Bounds, check_finite
from ppo1_lightning.simulators.failures import is_an_end
from ppo1_lightning.simulators.observations import ObservationAdapter
from ppo1_lightning.simulators.placement import own_cores


class Outcome(NamedTuple):
    """What T steps of N environments did, reset rows included: ``[T, N]`` each."""

    reward: NDArray[Any]  # learned from (Atari: clipped where that option is on)
    raw_reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]  # the next row is a reset after either flag
    game_over: NDArray[np.bool_]  # terminated, and (Atari) not merely by a lost life


class VectorSimulator(Simulator):
    """Converts, checks and masks what a library with NEXT_STEP resets returns.

    A subclass tells what its library has and knows how to open, reset, step and close it.

    Args:
        spec: an id that the library has (`has_id`), with the library's own options.
        seeds: one int32 seed per environment; their number is N.
        render: whether `render` will be called.
        cores: those that the environments' threads may use, None: all of this process.
        wrapper_states: one for each environment, or none.

    Raises:
        ConfigurationError: an option, a space or a seed that cannot work.
    """

    library: ClassVar[str]
    """The library's name for messages."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        seeds: Sequence[int],
        *,
        render: bool = False,
        cores: Sequence[int] | None = None,
        wrapper_states: Sequence[dict[str, Any]] = (),
    ) -> None:
        checked = _check_seeds(seeds)
        observation_space, action_space = self.native_spaces(spec)
        self.id, self.timeout = spec.id, spec.timeout
        self._cores = own_cores() if cores is None else cores
        self._wrapper_states = wrapper_states
        self._reward_scale = np.float32(spec.reward_scale)
        self._observations = ObservationAdapter(spec, observation_space)
        self.num_envs = len(checked)
        self.pools = pools_of(self.num_envs, spec.num_pools)
        size = self.pools[0].stop
        self._actions = ActionAdapter(spec, action_space, size, self._observations.mask_shape)
        self._choices = masked_choices(self._observations.mask, self._actions.space)
        self._ended: NDArray[np.bool_] | None = None  # [N]: the next row is a reset
        self.observation_space = self._observations.space
        self._bounds = Bounds(spec.id, self.row_space)
        self.action_space = self._actions.space
        try:
            self._open(spec, [checked[envs] for envs in self.pools], render=render)
        except ConfigurationError:
            raise
        except BaseException as error:
            if is_an_end(error):
                raise
            raise self.refused(spec, error) from error

    @staticmethod
    @abstractmethod
    def ids() -> Collection[str]:
        """Return every id that the library has."""

    @staticmethod
    @abstractmethod
    def has_id(env_id: str) -> bool:
        """Tell whether the library has ``env_id``."""

    @classmethod
    @abstractmethod
    def native_spaces(
        cls, spec: EnvironmentSpec
    ) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Return the library's own (observation space, action space), and check the options.

        Raises:
            ConfigurationError: an option that the environment does not have or cannot take.
        """

    @abstractmethod
    def _open(self, spec: EnvironmentSpec, seeds: list[list[int]], *, render: bool) -> None:
        """Create the environments, a list of seeds for each pool."""

    @abstractmethod
    def _picture(self) -> Any:
        """Return the library's own picture of the first environment, ``[H, W, 3]``."""

    @abstractmethod
    def _reset(self, pool: int) -> Any:
        """Start every environment of a pool and return the library's observations."""

    @abstractmethod
    def _send(self, action: NDArray[Any], pool: int) -> None:
        """Start a step of every environment of a pool."""

    @abstractmethod
    def _receive(self, pool: int) -> tuple[Any, RawStep]:
        """Wait for that step and return the library's own observations and fields."""

    @abstractmethod
    def _outcome(self, *fields: NDArray[Any]) -> Outcome:
        """Tell what the fields that `_receive` returned mean, ``[T, N]`` each."""

    @abstractmethod
    def _free(self) -> None:
        """Close the environments: `close`, in which `hanging` sees it."""

    def close(self) -> None:
        self._free()

    def reset(self) -> NDArray[Any]:
        observation = np.empty((self.num_envs, *self.row_space.shape), self.row_space.dtype)
        for pool, envs in enumerate(self.pools):
            self._observations(self._reset(pool), observation[envs])
        self._ended = np.zeros(self.num_envs, np.bool_)
        self.check_observations(observation[None])
        self._check_masks(observation[None], ~self._ended)
        return observation

    def send(self, action: NDArray[Any], pool: int) -> None:
        if self._ended is None:
            raise RuntimeError("step() was called before reset()")
        self._send(self._actions(action), pool)

    def receive(self, observation: NDArray[Any], pool: int) -> RawStep:
        native_observation, fields = self._receive(pool)
        self._observations(native_observation, observation)
        return fields

    def ended(self, step: RawStep) -> NDArray[np.bool_]:
        outcome = self._outcome(*(np.asarray(field)[None] for field in step))
        return (outcome.terminated | outcome.truncated)[0]

    def settle(self, steps: Sequence[RawStep], observations: NDArray[Any]) -> Step:
        assert self._ended is not None
        shape = (len(observations), self.num_envs)
        fields = (np.concatenate(field).reshape(shape) for field in zip(*steps, strict=True))
        outcome = self._outcome(*fields)
        # The flags of the step before decide which rows are resets. Some environments return a
        # reward on a reset row, or end again right there: nothing on it counts, except that its
        # own flags make the row after it another reset.
        ended = np.concatenate([self._ended[None], outcome.terminated | outcome.truncated])
        self._ended = ended[-1]
        valid = ~ended[:-1]
        terminated = outcome.terminated & valid
        truncated = outcome.truncated & valid & ~terminated
        settled = Step(
            observation=observations,
            reward=_masked(outcome.reward, valid) * self._reward_scale,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            raw_reward=_masked(outcome.raw_reward, valid),
            episode_over=(outcome.game_over & terminated) | truncated,
        )
        check_finite(self.id, "reward", settled.reward)
        check_finite(self.id, "reward", settled.raw_reward)
        self.check_observations(settled.observation)
        self._bounds.tell(settled.observation)
        self._check_masks(settled.observation, ~ended[1:])
        return settled

    def check_observations(self, observations: NDArray[Any]) -> None:
        check_finite(self.id, "observation", observations)

    def _check_masks(self, observations: NDArray[Any], goes_on: NDArray[np.bool_]) -> None:
        """Raise `SimulationError` where nothing is allowed in one of ``[T, N, D]`` that goes on."""
        if self._choices is None:
            return
        columns, firsts = self._choices
        allowed = np.add.reduceat(observations[..., columns] != 0, firsts, axis=-1)
        stuck = (allowed == 0).any(-1) & goes_on
        if stuck.any():
            raise SimulationError(
                f"of {self.id!r} returned an action_mask that allows nothing, expected one "
                "allowed choice or the end of the episode",
                environment=int(np.argwhere(stuck)[0][1]),
            )

    def render(self) -> NDArray[np.uint8]:
        try:
            picture = np.asarray(self._picture())
        except Exception as error:  # each library has its own for "no picture"
            raise ConfigurationError(
                f"{self.library} cannot render {self.id!r}: {one_line(error)}"
            ) from error
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ConfigurationError(
                f"{self.library} renders {self.id!r} as {picture.dtype} {picture.shape}, "
                "expected a picture of uint8 [H, W, 3]"
            )
        return picture

    @classmethod
    def refused(cls, spec: EnvironmentSpec, error: BaseException) -> ConfigurationError:
        """Return the error for what the library refuses, such as a missing system library."""
        options = f" with {dict(spec.options)}" if spec.options else ""
        reason = whole_in_one_line(error)
        if not isinstance(error, Exception):  # such as SystemExit
            reason = f"it raised {type(error).__name__} ({reason})"
        return ConfigurationError(f"{cls.library} cannot make {spec.id!r}{options}: {reason}")

    @classmethod
    def own_options(cls, spec: EnvironmentSpec, reserved: Mapping[str, str]) -> dict[str, Any]:
        """Return a copy of the options, none of which may be ``reserved`` (name -> what to do).

        Raises:
            ConfigurationError: a reserved option.
        """
        for name in spec.options:
            if name in reserved:
                raise ConfigurationError(
                    f"option {name!r} of {spec.id!r} cannot be set here, expected it absent: "
                    f"{reserved[name]}"
                )
        return dict(spec.options)

    @classmethod
    def check_names(
        cls, spec: EnvironmentSpec, options: Collection[str], allowed: Collection[str]
    ) -> None:
        """Raise `ConfigurationError` when one of ``options`` is not ``allowed``."""
        for name in options:
            if name not in allowed:
                raise ConfigurationError(
                    f"option {name!r} is unknown to {spec.id!r} on {cls.library}, expected some of "
                    f"{', '.join(sorted(allowed))}{nearest(name, allowed)}"
                )


def pools_of(num_envs: int, num_pools: int) -> list[slice]:
    """Return the environments of each pool, the same number in all.

    Raises:
        ConfigurationError: they do not divide.
    """
    if num_envs % num_pools:
        fitting = [n for n in range(1, num_envs + 1) if num_envs % n == 0]
        raise ConfigurationError(
            f"env.num_pools={num_pools} does not divide a device's {num_envs} environments, "
            f"expected a divisor such as {min(fitting, key=lambda n: abs(n - num_pools))}"
        )
    size = num_envs // num_pools
    return [slice(first, first + size) for first in range(0, num_envs, size)]


def _masked(reward: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(valid, reward, 0).astype(np.float32, copy=False)


def _check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds as a list of Python ints, or raise `ConfigurationError`."""
    checked = [operator.index(seed) for seed in seeds]
    if not checked:
        raise ConfigurationError("a simulator was given no seed, expected one per environment")
    for seed in checked:
        if not 0 <= seed < 2**31:
            raise ConfigurationError(
                f"environment seed {seed} is out of range, expected 0 to {2**31 - 1}"
            )
    return checked
