"""EnvPool: fast simulators in C++, the default.

EnvPool does not check its input (a wrong option or action aborts the process), so everything is
checked here, before it gets there. Import this module only where EnvPool is to be used.
"""

from __future__ import annotations

import ctypes
import operator
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import envpool
import gymnasium
import numpy as np
from envpool.registration import registry
from gymnasium.spaces import Dict, MultiBinary
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, check_flag, check_integer, check_number
from ppo1_lightning.policies.spaces import MASK
from ppo1_lightning.simulators.base import EnvironmentSpec, RawStep
from ppo1_lightning.simulators.observations import leaf_name, leaves
from ppo1_lightning.simulators.placement import shared_core, spread, started_threads
from ppo1_lightning.simulators.vector import Outcome, VectorSimulator

_RESERVED = {
    "num_envs": "set num_envs of the run",
    "batch_size": "all environments are stepped together",
    "seed": "set the seed of the run",
    "env_seed": "set the seed of the run",
    "num_threads": "set num_threads beside options",
    "max_num_players": "environments have one player",
    "env_type": "the interface is fixed",
    "gym_reset_return_info": "the interface is fixed",
    "base_path": "the files are those of the installed EnvPool",
    "task": "the id chooses it",
    "task_name": "the id chooses it",
    "env_name": "the id chooses it",
}
_POSITIVE = {
    "frame_skip",
    "frame_stack",
    "height",
    "img_height",
    "img_width",
    "max_episode_steps",
    "noop_max",
    "size",
    "stack_num",
    "width",
}
_FAMILIES = {
    "envpool.atari": "atari",
    "envpool.minigrid": "minigrid",
    "envpool.mujoco.dmc": "dm_control",
    "envpool.mujoco.gym": "mujoco",
    "envpool.procgen": "procgen",
    "envpool.toy_text": "toy_text",
}
_QUICK = {"envpool.classic_control", "envpool.toy_text"}  # a step takes less than to wake a thread
_CRASHES = {"Cig-v1", "MultiDuel-v1"}  # they wait for players that never come, and end the process
_MASK_IN_INFO = "info:legal_action_mask"
_FIELDS = ("reward", "done", "trunc")
_ATARI_FIELDS = (*_FIELDS, "info:reward", "info:terminated")
_ATARI_STATE = {"info:lives", "info:reward", "info:terminated"}


class EnvPoolSimulator(VectorSimulator):
    """N environments in EnvPools, each of which ``spec.num_threads`` threads step.

    A failure exactly at the time limit is reported as truncated (EnvPool), on Atari as terminated.
    """

    library = "EnvPool"

    @staticmethod
    def ids() -> Collection[str]:
        return envpool.list_all_envs()

    @staticmethod
    def has_id(env_id: str) -> bool:
        return env_id in EnvPoolSimulator.ids()

    @staticmethod
    def family(env_id: str) -> str | None:
        """Return the preset for an environment's kind, None where there is none."""
        module, *_ = registry.specs[env_id]
        return _FAMILIES.get(module)

    @classmethod
    def native_spaces(
        cls, spec: EnvironmentSpec
    ) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        native = cls._native_spec(spec, cls._options(spec))
        several = any(key.startswith(("obs:players", "info:players.id")) for key in _state(native))
        if several or spec.id in _CRASHES:
            raise ConfigurationError(
                f"environment {spec.id!r} has several players, expected one with a single player"
            )
        with _no_cast_warnings():
            observation_space, action_space = native.observation_space, native.action_space
        found = {leaf_name(path): space for path, space in leaves(observation_space)}
        mask = native.state_array_spec.get(_MASK_IN_INFO)
        if mask is not None:
            found = {name or "observation": space for name, space in found.items()}
            found[MASK] = MultiBinary(mask.shape)
        is_array = list(found) == [""]
        # a list of pairs, for a dict would be sorted
        return (found[""] if is_array else Dict([*found.items()])), action_space

    def _open(self, spec: EnvironmentSpec, seeds: list[list[int]], *, render: bool) -> None:
        options = self._options(spec)
        self._is_atari = _state(self._native_spec(spec, options)) >= _ATARI_STATE
        if render:
            _load_opengl()
            options["render_mode"] = "rgb_array"
        num_envs = len(seeds[0])
        num_threads = spec.num_threads or threads_that_help(spec.id, num_envs, len(self._cores))
        options |= {"num_envs": num_envs, "num_threads": num_threads}
        self._pools: list[Any] = []
        workers = [self._open_pool(spec, its_seeds, options) for its_seeds in seeds]
        # Only a single pool's only worker has nothing to do while the policy acts.
        is_alone = spec.pin_threads and len(workers) == len(workers[0]) == 1
        self._lone_worker = workers[0][0] if is_alone else None
        self._env_ids = np.arange(num_envs, dtype=np.int32)
        self._find_fields(spec, self._pools[0])

    def _open_pool(
        self, spec: EnvironmentSpec, seeds: list[int], options: dict[str, Any]
    ) -> list[int]:
        """Create one pool, place its workers, and return their thread ids."""
        with started_threads() as threads:
            pool = envpool.make_gymnasium(spec.id, seed=seeds, **options)
        self._pools.append(pool)
        with _no_cast_warnings():
            _ = pool.observation_space  # made on first use, then kept
        workers = threads[-options["num_threads"] :]  # the thread before them prepares buffers
        # Fewer workers than cores stay free, lest other runs on this machine take the same cores.
        if spec.pin_threads and len(workers) == len(self._cores) > 1:
            spread(workers, self._cores)
        return workers

    def _find_fields(self, spec: EnvironmentSpec, pool: Any) -> None:
        """Note where in what a pool returns each of its fields is."""
        if pool._spec._action_keys != ["env_id", "players.env_id", "action"]:
            raise ConfigurationError(
                f"{spec.id!r} takes {pool._spec._action_keys}, expected a single action"
            )
        index = {name: i for i, name in enumerate(pool._state_keys)}
        self._observed = {
            name[4:].replace(":", "."): i for name, i in index.items() if name[:4] == "obs:"
        }
        self._observation = index.get("obs")  # None where it is a Dict
        if self._observation is None and not isinstance(pool.observation_space, Dict):
            (self._observation,) = self._observed.values()  # EnvPool takes it out of a Dict of one
        if _MASK_IN_INFO in index:
            if self._observation is not None:
                self._observed["observation"] = self._observation
            self._observed[MASK], self._observation = index[_MASK_IN_INFO], None
        names = _ATARI_FIELDS if self._is_atari else _FIELDS
        self._fields = operator.itemgetter(*(index[name] for name in names))

    def _reset(self, pool: int) -> Any:
        self._opened()[pool].async_reset()
        return self._receive(pool)[0]

    # EnvPool's own `step` does the same with twice the Python: it looks up what never changes.

    def _send(self, action: NDArray[Any], pool: int) -> None:
        self._opened()[pool]._send([self._env_ids, self._env_ids, action])

    def _receive(self, pool: int) -> tuple[Any, RawStep]:
        state = self._opened()[pool]._recv()
        if self._observation is not None:
            return state[self._observation], self._fields(state)
        observation = {name: state[index] for name, index in self._observed.items()}
        return observation, self._fields(state)

    def _outcome(self, *fields: NDArray[Any]) -> Outcome:
        reward, done, truncated, *atari = fields
        terminated = done & ~truncated
        if not atari:
            return Outcome(reward, reward, terminated, truncated, terminated)
        raw_reward, game_terminated = atari
        # With episodic_life a lost life terminates too; info tells whether the game did, even
        # where that falls on the time limit. On a reset row info's flag announces no reset, hence
        # the conjunction.
        game_over = (terminated | truncated) & (game_terminated > 0)
        return Outcome(reward, raw_reward, terminated | game_over, truncated, game_over)

    def _opened(self) -> list[Any]:
        if not self._pools:
            raise RuntimeError("the simulator is closed")
        return self._pools

    def _picture(self) -> Any:
        return self._opened()[0].render()[0]

    def stepping(self) -> AbstractContextManager[None]:
        return shared_core(self._lone_worker) if self._lone_worker else nullcontext()

    def _free(self) -> None:
        self._pools = []  # EnvPool's own close() stops no thread; its destructor does

    @classmethod
    def _native_spec(cls, spec: EnvironmentSpec, options: dict[str, Any]) -> Any:
        try:
            return envpool.make_spec(spec.id, **options)
        except Exception as error:
            raise cls.refused(spec, error) from error

    @classmethod
    def _options(cls, spec: EnvironmentSpec) -> dict[str, Any]:
        """Return the options, checked and in the types that EnvPool expects."""
        options = cls.own_options(spec, _RESERVED)
        if not options:
            return options
        defaults = cls._native_spec(spec, {}).config._asdict()
        cls.check_names(spec, options, defaults.keys() - _RESERVED.keys())
        return {name: _checked(name, options[name], defaults[name]) for name in options}


def threads_that_help(env_id: str, num_envs: int, cores: int) -> int:
    """Return how many worker threads step a pool of environments fastest."""
    module, *_ = registry.specs[env_id]
    return 1 if module in _QUICK else max(1, min(num_envs, cores))


def _load_opengl() -> None:
    """Load EnvPool's own OpenGL for all of the process: without it MuJoCo's renderer ends it."""
    folder = Path(envpool.__file__).parents[1] / "envpool.libs"
    for library in ("libGLdispatch", "libOpenGL", "libEGL"):  # each needs those before it
        for path in folder.glob(f"{library}*"):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


@contextmanager
def _no_cast_warnings() -> Iterator[None]:
    """Hide Gymnasium's warning that EnvPool states float32 bounds as float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _state(native_spec: Any) -> set[str]:
    """Return the names of all that the environment reports at a step."""
    return set(native_spec.state_array_spec)


def _checked(name: str, value: Any, default: Any) -> Any:
    """Return ``value`` in the type of the option's default, or raise `ConfigurationError`."""
    if isinstance(default, bool):
        return check_flag(name, value)
    if isinstance(default, int):
        check_number(name, value, at_most=2**31 - 1)
        return check_integer(name, value, at_least=1 if name in _POSITIVE else -(2**31))
    if isinstance(default, float):
        return check_number(name, value)
    expected = (list, tuple) if isinstance(default, list | tuple) else type(default)
    if default is not None and not isinstance(value, expected):
        raise ConfigurationError(
            f"{name}={value!r} has the wrong type, expected something like {default!r}"
        )
    return value
