"""The simulators: everything that knows EnvPool or Gymnasium's vector environments.

The rest of the package sees `Simulator`, `RawStep` and `Step`. EnvPool is imported when it is first
needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gymnasium import Space

from ppo1_lightning.errors import ConfigurationError, nearest
from ppo1_lightning.simulators.actions import ActionAdapter
from ppo1_lightning.simulators.base import EnvironmentSpec, RawStep, Simulator, Step
from ppo1_lightning.simulators.observations import ObservationAdapter
from ppo1_lightning.simulators.registered import is_atari, of_module, registered
from ppo1_lightning.simulators.vector import VectorSimulator

if TYPE_CHECKING:
    from ppo1_lightning.simulators.envpool import EnvPoolSimulator

__all__ = [
    "EnvironmentSpec",
    "RawStep",
    "Simulator",
    "Step",
    "family",
    "ids",
    "is_envpool_s",
    "make_adapters",
    "make_simulator",
    "nearest_id",
    "spaces",
]


def spaces(spec: EnvironmentSpec) -> tuple[Space[Any], Space[Any]]:
    """Return the (observation space, action space) that the simulator of ``spec`` will report.

    Cheap: asks EnvPool's specification, or one throw-away Gymnasium environment.

    Raises:
        ConfigurationError: an unknown id or option, or a space that is not supported.
    """
    observation, action = make_adapters(spec)
    return observation.space, action.space


def make_adapters(spec: EnvironmentSpec) -> tuple[ObservationAdapter, ActionAdapter]:
    """Return what stands between the environment's own spaces and those of `spaces`; cheap too.

    Raises:
        ConfigurationError: an unknown id or option, or a space that is not supported.
    """
    with _staying_here():  # this one is thrown away
        observation_space, action_space = _backend(spec).native_spaces(spec)
    observation = ObservationAdapter(spec, observation_space)
    return observation, ActionAdapter(spec, action_space, 1, observation.mask_shape)


@contextmanager
def _staying_here() -> Iterator[None]:
    """Come back to the working directory, wherever an environment goes."""
    here = None
    with suppress(FileNotFoundError):  # it may be gone
        here = os.getcwd()
    try:
        yield
    finally:
        if here is not None:
            os.chdir(here)


def make_simulator(
    spec: EnvironmentSpec,
    seeds: Sequence[int],
    *,
    render: bool = False,
    cores: Sequence[int] | None = None,
    wrapper_states: Sequence[dict[str, Any]] = (),
) -> Simulator:
    """Return a simulator of ``len(seeds)`` environments, each with its own int32 seed.

    Create it in the process that steps it: a forked child must not use its parent's threads.

    Args:
        render: whether `Simulator.render` will be called.
        cores: those that EnvPool's threads may use, None: all of this process; with several ranks
            on a machine each has a share, see `placement.own_cores`.
        wrapper_states: what the wrappers of each environment go on with, see
            `Simulator.wrapper_states`; nothing for none.

    Raises:
        ConfigurationError: an unknown id or option, a space that is not supported, a bad seed.
    """
    return _backend(spec)(spec, seeds, render=render, cores=cores, wrapper_states=wrapper_states)


def _backend(spec: EnvironmentSpec) -> type[VectorSimulator]:
    """Return the simulator class of the first library that has the id."""
    candidates = _candidates(spec)
    for candidate in candidates:
        if candidate.has_id(spec.id):
            return candidate
    known = [env_id for candidate in candidates for env_id in candidate.ids()]
    module, _, name = spec.id.rpartition(":")  # it has been imported
    own = of_module(module) if module else []
    libraries = " and ".join(candidate.library for candidate in candidates)
    hint = nearest_id(name, own or known) or ", expected one such as 'CartPole-v1' or 'Pong-v5'"
    hint += f" (as {module}:ID)" if own else ""
    raise ConfigurationError(f"environment id {spec.id!r} is unknown to {libraries}{hint}")


def _candidates(spec: EnvironmentSpec) -> list[type[VectorSimulator]]:
    """Return the classes that may simulate ``spec``, in order of preference."""
    candidates: list[type[VectorSimulator]] = []
    # Only Gymnasium wraps, and imports the module of an id with a colon: that spares EnvPool's
    # import.
    only_gymnasium = bool(spec.wrappers) or ":" in spec.id
    if spec.backend == "envpool" or (spec.backend == "auto" and not only_gymnasium):
        found = _envpool()
        if found is None and spec.backend == "envpool":
            raise ConfigurationError(
                f"environment {spec.id!r} needs EnvPool, which is not installed (it has wheels for "
                "Linux, macOS on arm64 and Windows), expected env.backend=gymnasium"
            )
        candidates += [found] if found else []
    if spec.backend != "envpool":
        from ppo1_lightning.simulators.gymnasium import GymnasiumSimulator

        candidates.append(GymnasiumSimulator)
    return candidates


def _envpool() -> type[EnvPoolSimulator] | None:
    """Return EnvPool's simulator, None where EnvPool is not installed."""
    try:
        from ppo1_lightning.simulators.envpool import EnvPoolSimulator
    except ImportError:
        return None
    return EnvPoolSimulator


def ids() -> list[str]:
    """Return the ids of EnvPool, then those that only Gymnasium has."""
    found = _envpool()
    first = list(found.ids()) if found else []
    return [*first, *sorted(set(registered()) - set(first))]


def ids_of(module: str) -> list[str]:
    """Return the ids ``module:ID`` of a module's environments, none where it cannot be imported."""
    from ppo1_lightning.simulators.gymnasium import GymnasiumSimulator

    with suppress(ConfigurationError):
        GymnasiumSimulator.has_id(f"{module}:")  # which imports it
    return [f"{module}:{env_id}" for env_id in of_module(module)]


def is_envpool_s(env_id: str) -> bool:
    """Whether EnvPool is installed and has an id."""
    found = _envpool()
    return found is not None and found.has_id(env_id)


def family(env_id: str) -> str | None:
    """Return the preset for the kind of an environment, None where there is none."""
    if is_atari(env_id):
        return "atari_gymnasium"
    found = _envpool()
    return found.family(env_id) if found and found.has_id(env_id) else None


def nearest_id(env_id: str, known: Sequence[str]) -> str:
    """Return the hint for an unknown id; Gym's older Atari names lead to today's."""
    name = _game(env_id)
    if versions := [choice for choice in known if _game(choice) == name]:
        return nearest(f"{name}-v0", versions)
    if others := [choice for choice in ids() if _game(choice) == name]:
        library = "EnvPool" if is_envpool_s(others[0]) else "Gymnasium"
        return f"; {library} has {others[0]!r}"
    return nearest(env_id, known)


def _game(env_id: str) -> str:
    """Return an id's name, without module, version, and what Atari's had before and behind it."""
    pattern = r"^(.*:)?(ALE/)?|(-ram)?(NoFrameskip|Deterministic)?-v\d+$"
    return re.sub(pattern, "", env_id).lower()
