"""What a Gymnasium environment did wrong, in one line."""

from __future__ import annotations

import reprlib
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector.utils import space_utils

from ppo1_lightning.errors import (
    ConfigurationError,
    RunError,
    SimulationError,
    one_line,
    whole_in_one_line,
)
from ppo1_lightning.policies.spaces import MASK
from ppo1_lightning.simulators.wrappers import GAME_OVER, RAW_REWARD

_READ = (RAW_REWARD, GAME_OVER)
"""What is read of a step's info."""

_GYMNASIUM = str(Path(gymnasium.__file__).parent)

_OF_OLD = ("unpack", "unexpected keyword argument")
"""Words of what Python says where reset or step is of the interface of old."""

_NEW = (
    "step to return (observation, reward, terminated, truncated, info) and reset(seed, options) "
    "(observation, info); a wrapper such as shimmy's GymV21CompatibilityV0 makes that of the old "
    "interface"
)
_OF_THE_INTERFACE = {
    **dict.fromkeys(_OF_OLD, _NEW),
    "info is": "a dict as info",
    "": "a number as the reward and a bool as each flag; of several rewards a wrapper makes one, "
    "such as mo_gymnasium's LinearReward",
}
"""What was expected, by what Python says of it."""


class WrongStepError(ValueError):
    """A reward is not one number, a flag neither true nor false, or an info no dict."""


class WrongObservationError(ValueError):
    """An observation is of another shape than its space."""


class OwnError(Exception):
    """What an environment raised itself in a process of its own, in words: frames stay there."""


class OwnErrors(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises an `OwnError` for what an environment raises in a process of its own."""

    def reset(self, **arguments: Any) -> Any:
        with _own_errors():
            return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        with _own_errors():
            return self.env.step(action)


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        is_ours = isinstance(error, WrongStepError | WrongObservationError)
        if is_ours or _is_of_the_interface(error):
            raise
        raise OwnError(_for_a_format(said(error))) from None  # it may be one that is not pickled


def _for_a_format(text: str) -> str:
    """Return what Gymnasium, which formats it with this very traceback, leaves as it is."""
    return text.replace("%", "%%")


class Returned(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Looks at what an environment returns, before Gymnasium makes arrays of it.

    Of its infos only what is read goes on: Gymnasium would join the others, of whatever they are,
    or send them from process to process. Raises `WrongStepError` where the first reset or step
    returns no such thing as reward, flags or observation of the space's shape: Gymnasium takes the
    truth of whatever flags are.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._is_first = True

    def reset(self, **arguments: Any) -> Any:
        observation, info = self.env.reset(**arguments)
        if self._is_first:
            _check_shape(self.observation_space, observation)
        _check_info(info)
        return observation, {MASK: True} if MASK in info else {}  # to be told that there is one

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._is_first:
            self._is_first = False
            _check_shape(self.observation_space, observation)
            if reward is None:
                raise WrongStepError("reward is None")
            _check_flag("terminated", terminated)
            _check_flag("truncated", truncated)
        _check_info(info)
        read = {key: info[key] for key in _READ if key in info} if info else {}
        return observation, reward, terminated, truncated, read


def _check_info(info: Any) -> None:
    if not isinstance(info, Mapping):
        raise WrongStepError(f"info is {reprlib.repr(info)}")


def _check_flag(name: str, flag: Any) -> None:
    """Take one number, also in an array; a list would be true whatever is in it."""
    one = np.asarray(flag) if hasattr(flag, "dtype") or np.isscalar(flag) else np.empty(0)
    if one.size != 1 or one.dtype.kind not in "biuf" or np.isnan(one).any():
        raise WrongStepError(f"{name} is {reprlib.repr(flag)}")


def _check_shape(space: gymnasium.Space[Any], observation: Any) -> None:
    if not isinstance(space, Box):
        return
    try:
        shape = np.shape(observation)
    except ValueError as error:  # lists of several lengths
        raise WrongObservationError(one_line(error)) from None
    if shape != space.shape:
        raise WrongObservationError(f"its shape is {shape}")


def is_an_end(error: BaseException) -> bool:
    """Tell whether this process is to end, and no environment has raised it.

    A signal's handler raises wherever the process is, so in a step too. An environment that calls
    `sys.exit` has failed. A handler that has taken itself back before it raises is not known.
    """
    if isinstance(error, Exception | KeyboardInterrupt):
        return isinstance(error, KeyboardInterrupt)
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {_code(handler) for handler in handlers if callable(handler)}
    return any(frame.f_code in codes for frame in _frames(error))


def _code(function: Any) -> Any:
    """Return what a function, a partial of one, or an object that can be called runs."""
    function = getattr(function, "func", function)
    return getattr(function, "__code__", getattr(type(function).__call__, "__code__", ""))


def explained(
    env_id: str, observation_space: gymnasium.Space[Any], error: BaseException
) -> RunError:
    """Return an error of one line for one that came out of a vector environment.

    Args:
        env_id: for the message.
        observation_space: of one environment.
        error: what was raised.
    """
    if isinstance(error, RunError):
        return error
    frames = _frames(error)
    if isinstance(error, OwnError):
        text = str(error).replace("%%", "%")
        return SimulationError(f"of {env_id!r} raised {text}", environment=index_of(frames) or 0)
    what = f"{type(error).__name__}: {one_line(error)}"
    number = index_of(frames)
    which = f"environment {env_id!r}" if number is None else f"environment {number} of {env_id!r}"
    in_place = any(frame.f_code.co_filename == space_utils.__file__ for frame in frames)
    if isinstance(error, WrongObservationError) or in_place or _is_of_shared_memory(error):
        return ConfigurationError(
            f"{which} returns an observation that is not in its space {observation_space} ({what})"
        )
    if isinstance(error, EOFError | ConnectionError | BrokenPipeError):
        return SimulationError(
            f"of {env_id!r} has lost its process, which was killed or ended itself",
            environment=index_of(frames) or 0,
        )
    if isinstance(error, WrongStepError) or _is_of_the_interface(error):
        expected = next(text for word, text in _OF_THE_INTERFACE.items() if word in one_line(error))
        return ConfigurationError(
            f"{which} does not reset or step as Gymnasium's do: its reward, flags, "
            f"info or their number ({what}), expected {expected}"
        )
    return SimulationError(f"of {env_id!r} raised {said(error)}", environment=index_of(frames) or 0)


def said(error: BaseException) -> str:
    """Return what was raised and where, in one line."""
    where = Path(_frames(error)[-1].f_code.co_filename).name
    return (
        f"{type(error).__name__}: {whole_in_one_line(error)} ({where}:{_line(error)}; "
        "HYDRA_FULL_ERROR=1 shows how it came to it)"
    )


def said_in_import(error: BaseException) -> str:
    """Return why a module cannot be imported, and where if that is a mistake in it."""
    has_place = isinstance(error, ImportError | SyntaxError)
    return one_line(error) if has_place else said(error)


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_of_the_interface(error: BaseException) -> bool:
    """Whether it is Gymnasium that could not take what an environment returned."""
    words = (*_OF_OLD, "sequence", "scalar", "truth value", "float", "must be real number")
    file = _frames(error)[-1].f_code.co_filename
    by_gymnasium = file.startswith(_GYMNASIUM) or file == __file__  # see `Returned`
    is_about_it = any(word in one_line(error) for word in words)
    return by_gymnasium and isinstance(error, TypeError | ValueError) and is_about_it


def _is_of_shared_memory(error: BaseException) -> bool:
    """Whether a process of its own could not put an observation where the others' are.

    What else it raises are an `OwnError` and what returned another number of things.
    """
    is_raised_there = _frames(error)[-1].f_code.co_name == "_raise_if_errors"
    of_others = isinstance(error, OwnError | WrongStepError)
    is_of_old = any(word in one_line(error) for word in _OF_OLD)
    return is_raised_there and not of_others and not is_of_old


def _line(error: BaseException) -> int | None:
    return list(traceback.walk_tb(error.__traceback__))[-1][1]


def index_of(frames: list[FrameType]) -> int | None:
    """Return the number of the environment, as Gymnasium's loop over them has it, None outside."""
    own = [frame for frame in frames if frame.f_code.co_filename.startswith(_GYMNASIUM)]
    for name in ("index", "i", "env_idx"):  # of a process that failed, then of the loops
        for frame in own:
            if isinstance(number := frame.f_locals.get(name), int):
                return number
    return None
