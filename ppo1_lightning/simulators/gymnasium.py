"""Gymnasium: the way in for every environment that EnvPool lacks, in pure Python."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import random
import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from numpy.typing import NDArray

from ppo1_lightning import system
from ppo1_lightning.errors import ConfigurationError, SimulationError, check_choice
from ppo1_lightning.policies.spaces import MASK
from ppo1_lightning.simulators.base import EnvironmentSpec, RawStep
from ppo1_lightning.simulators.failures import (
    OwnErrors,
    Returned,
    WrongStepError,
    explained,
    is_an_end,
    said,
    said_in_import,
)
from ppo1_lightning.simulators.registered import is_registered, registered
from ppo1_lightning.simulators.vector import Outcome, VectorSimulator
from ppo1_lightning.simulators.wrapper_state import watched
from ppo1_lightning.simulators.wrappers import (
    GAME_OVER,
    RAW_REWARD,
    observing_mask,
    refuse_running_statistics,
    tell_unseen_mask,
)

log = logging.getLogger("ppo1_lightning")

_VECTOR_ENVS: dict[str, Callable[..., Any]] = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
_MAKE_ARGUMENTS = {"disable_env_checker", "max_episode_steps", "render_mode"}
_RESERVED = {
    "id": "set the id beside options",
    "num_envs": "set num_envs of the run",
    "seed": "set the seed of the run",
    "autoreset_mode": "the interface is fixed",
    "vector_kwargs": "the interface is fixed",
}


class GymnasiumSimulator(VectorSimulator):
    """N environments in this process, or each in its own (option ``vectorization_mode: async``).

    The other options are the environment's own arguments and those of ``gymnasium.make``.
    """

    library = "Gymnasium"

    @staticmethod
    def ids() -> Collection[str]:
        return registered()

    @staticmethod
    def has_id(env_id: str) -> bool:
        """Tell whether ``env_id`` is registered, after importing the module it may begin with.

        Raises:
            ConfigurationError: that module, or ``ale_py`` for one of its ids, cannot be imported.
        """
        module, _, name = env_id.rpartition(":")
        if module and not all(part.isidentifier() for part in module.split(".")):
            raise ConfigurationError(
                f"environment id {env_id!r} has no module's name before the colon, expected one "
                "such as 'my_package.envs:MyEnv-v0'"
            )
        if module:
            try:
                importlib.import_module(module)
            except BaseException as error:
                if is_an_end(error):
                    raise
                raise ConfigurationError(
                    f"module {module!r} of the environment id {env_id!r} cannot be imported "
                    f"({said_in_import(error)}), expected one on Python's path that registers its "
                    "environments"
                ) from error
            return name in gymnasium.registry
        return is_registered(name)

    @classmethod
    def native_spaces(
        cls, spec: EnvironmentSpec
    ) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        make, _ = cls._makers(spec)
        try:
            env = make()
            spaces = env.observation_space, env.action_space
        except BaseException as error:
            if is_an_end(error):
                raise
            raise cls.refused(spec, error) from error
        _close(spec.id, env)
        refuse_running_statistics(env)
        return spaces

    def _open(self, spec: EnvironmentSpec, seeds: list[list[int]], *, render: bool) -> None:
        if render:
            self._check_drawn(spec)
            spec = replace(spec, options={**spec.options, "render_mode": "rgb_array"})
        make, make_vector = self._makers(spec)
        self._could_mask = spec.observation_keys is None and not isinstance(self.action_space, Box)
        arguments: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if make_vector is AsyncVectorEnv:  # which has no memory to share for texts
            arguments["shared_memory"] = self._observations.all_numbers
        self._seeds: list[list[int] | None] = [*seeds]
        states = iter(self._wrapper_states or [None] * self.num_envs)
        makers = [[partial(watched, make, next(states)) for _ in its_seeds] for its_seeds in seeds]
        if make_vector is AsyncVectorEnv:
            makers = [
                [partial(_make_in_worker, *own, os.getpid()) for own in zip(its, s, strict=True)]
                for its, s in zip(makers, seeds, strict=True)
            ]
        self._pools = [make_vector(its, **arguments) for its in makers]
        self._waits: dict[int, Callable[[], tuple[Any, ...]]] = {}  # for a step under way, by pool

    @classmethod
    def _check_drawn(cls, spec: EnvironmentSpec) -> None:
        """Raise `ConfigurationError` where the environment does not say that it draws pictures."""
        env = cls._makers(spec)[0]()
        modes = env.metadata.get("render_modes") or []
        _close(spec.id, env)
        if "rgb_array" not in modes:
            raise ConfigurationError(
                f"environment {spec.id!r} cannot be drawn: its metadata has the render_modes "
                f"{list(modes)}, expected rgb_array among them"
            )

    def _reset(self, pool: int) -> Any:
        reset = partial(self._opened(pool).reset, seed=self._seeds[pool])
        observation, info = self._asked(pool, reset)
        if MASK in info and self._could_mask and self._observations.mask is None:
            tell_unseen_mask(self.id)
        self._seeds[pool] = None  # later resets go on with each environment's own generator
        return observation

    def _send(self, action: NDArray[Any], pool: int) -> None:
        envs = self._opened(pool)
        if isinstance(envs, AsyncVectorEnv):
            envs.step_async(action)
            self._waits[pool] = envs.step_wait
        else:  # it steps in this process, so when its result is asked for
            self._waits[pool] = partial(envs.step, action)

    def _receive(self, pool: int) -> tuple[Any, RawStep]:
        return self._asked(pool, partial(_step, self._waits.pop(pool)))

    def _asked(self, pool: int, call: Callable[[], Any]) -> Any:
        """Return ``call()``; tell in one line what an environment did wrong, or what it raised.

        No context manager: a StopIteration would pass it, and be taken for the end of the data.
        """
        try:
            return call()
        except BaseException as error:
            if is_an_end(error):
                raise
            told = explained(self.id, self._pools[0].single_observation_space, error)
            if isinstance(told, SimulationError):
                told.environment += self.pools[pool].start
            for envs in self._pools:
                _end(envs)
            raise told from error

    def _outcome(self, *fields: NDArray[Any]) -> Outcome:
        return Outcome(*fields)

    def _opened(self, pool: int) -> Any:
        if self._pools[pool].closed:
            raise RuntimeError("the simulator is closed")
        return self._pools[pool]

    def wrapper_states(self) -> list[dict[str, Any]] | None:
        if self._waits or any(pool.closed for pool in self._pools):
            return None
        return [state for pool in self._pools for state in pool.call("wrapper_state")]

    def _picture(self) -> Any:
        return self._opened(0).render()[0]

    def _free(self) -> None:
        for envs in self._pools:
            if getattr(envs, "_state", AsyncState.DEFAULT) != AsyncState.DEFAULT:
                _end(envs)  # it would wait for the step that was interrupted, which may hang
            _close(self.id, envs)

    @classmethod
    def _makers(cls, spec: EnvironmentSpec) -> tuple[Callable[[], gymnasium.Env], Callable]:
        """Return the function that makes one environment, and the class that steps N of them."""
        options = cls.own_options(spec, _RESERVED)
        mode = options.pop("vectorization_mode", "sync")
        check_choice("vectorization_mode", mode, _VECTOR_ENVS)
        parameters = cls._parameters(spec)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            cls.check_names(spec, options, parameters.keys() | _MAKE_ARGUMENTS)
        # Gymnasium's checker looks at every step; what matters is checked here for all at once.
        arguments = {"disable_env_checker": True, **options}
        wants_mask = MASK in (spec.observation_keys or ())
        wrappers = [*spec.wrappers, *([observing_mask] if wants_mask else [])]
        return partial(_make, spec.id, wrappers, **arguments), _VECTOR_ENVS[mode]

    @classmethod
    def _parameters(cls, spec: EnvironmentSpec) -> dict[str, inspect.Parameter]:
        """Return the parameters of the environment's constructor."""
        entry_point = gymnasium.registry[spec.id.rpartition(":")[2]].entry_point
        if entry_point is None:
            raise ConfigurationError(
                f"environment {spec.id!r} exists as a vector environment only, expected one that "
                "gymnasium.make can create"
            )
        try:
            creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        except BaseException as error:  # such as a package that is not installed
            if is_an_end(error):
                raise
            raise cls.refused(spec, error) from error
        return dict(inspect.signature(creator).parameters)


def _step(wait: Callable[[], tuple[Any, ...]]) -> tuple[Any, RawStep]:
    """Return the observations and fields of a step."""
    observation, reward, terminated, truncated, info = wait()
    if np.ndim(reward) != 1:  # where each has a process of its own, Gymnasium takes arrays
        raise WrongStepError(f"rewards of the shape {np.shape(reward)}")
    raw_reward, game_over = info.get(RAW_REWARD, reward), info.get(GAME_OVER, terminated)
    return observation, (reward, raw_reward, terminated, truncated, game_over)


def _close(env_id: str, env: Any) -> None:
    """Close an environment, or several; what one raises is told, and the others are closed."""
    if isinstance(env, SyncVectorEnv):
        for own in env.envs:
            _close(env_id, own)
        env.closed = True
        return
    try:
        env.close()
    except BaseException as error:
        if is_an_end(error):
            raise
        log.warning("environment %r raised %s when it was closed", env_id, said(error))


def _end(envs: Any) -> None:
    """End the processes of environments, one of which has failed, whatever they wait for."""
    if isinstance(envs, AsyncVectorEnv):
        for process in envs.processes:
            process.kill()
        envs.closed = True


def _make_in_worker(make: Callable[[], gymnasium.Env], seed: int, run: int) -> gymnasium.Env:
    """Make an environment in a process of its own, a fork of the ``run``, which is a process id.

    The run's handlers of signals would keep it alive, a signal to all of the run would end it
    before the run's last iteration is whole, and generators of the process would be all alike.
    """
    if os.getpid() == run:  # where Gymnasium asks one for its spaces
        return make()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    system.leave_group()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return OwnErrors(make())


def _make(
    env_id: str, wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]], **arguments: Any
) -> gymnasium.Env:
    """Return a wrapped environment."""
    env = gymnasium.make(env_id, **arguments)
    for wrap in wrappers:
        env = wrap(env)
        if not isinstance(env, gymnasium.Env):
            raise TypeError(f"the wrapper {wrap} returned {env!r}, expected an environment")
    return Returned(env)
