"""Command lines on top of Hydra: where the configs are, and mistakes that end in one line."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands import sweep_report
from ppo1_lightning.errors import (
    ConfigurationError,
    RunError,
    check_choice,
    nearest,
)
from ppo1_lightning.runs import resume
from ppo1_lightning.runs.trackers import kept

EXIT_STATUS = 2
"""Of a run that ended by a mistake of the user."""

MISTAKES = (
    RunError,
    MisconfigurationException,
    HydraException,
    OmegaConfBaseException,
)
"""Exceptions that are told in one line; anything else is a bug and keeps its traceback."""


def config_directory() -> Path:
    """Return the folder of configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``task`` on every config that the command line describes (several with ``-m``).

    A mistake is printed as one line on stderr and ends the process with `EXIT_STATUS`, after the
    other jobs of a sweep; with HYDRA_FULL_ERROR=1 it is raised instead.
    """
    # of Lightning's own code: nobody who reads it can do anything about it
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    guarded = task if os.environ.get("HYDRA_FULL_ERROR") == "1" else _guard(task)
    if launch.is_rank():
        launch.run_rank(guarded)
        return
    register_resolvers()
    start = hydra.main(str(config_directory()), config_name, version_base="1.3")(guarded)
    if guarded is task:
        start()
        return
    with environment_variable("HYDRA_FULL_ERROR", "1"):  # Hydra raises its errors to us
        try:
            start()
            sweep_report.write()
        except JobFailed as error:
            sweep_report.write()
            sys.exit(error.status)
        except Exception as error:
            report(explain(error, config_name))
            sys.exit(EXIT_STATUS)


def register_resolvers() -> None:
    """Make the functions known that ``conf/`` uses."""
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("first", first, replace=True)
    OmegaConf.register_new_resolver("kept", kept, replace=True)


class JobFailed(Exception):  # noqa: N818 (the job has told its error)
    """A job of a sweep has failed and said why; the others go on, in whatever processes."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _guard(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Return ``task`` with its errors told where they happen: the end of a job, not of a sweep."""

    @functools.wraps(task)
    def guarded(config: DictConfig) -> Any:
        if process_rank():
            logging.getLogger().setLevel(logging.WARNING)  # rank zero speaks for all
        try:
            with environment_variable("HYDRA_FULL_ERROR", None):  # not for child processes
                return task(config)
        except launch.RankError as error:
            message, status = str(error), error.status
        except Exception as error:
            message, status = "", 1
            if isinstance(error, MISTAKES) or _is_full_disk(error):
                told = getattr(error, "on_all_ranks", False) and process_rank()
                message, status = "" if told else explain(error), EXIT_STATUS  # by rank zero
            elif _is_lost_peer(error):
                print(f"rank {process_rank()} stopped, for another rank ended", file=sys.stderr)
            else:
                traceback.print_exc()
        if message:
            report(message)
            logging.getLogger("ppo1_lightning.errors").error(message)  # the job's log
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise JobFailed(status)
        sys.exit(status)

    return guarded


def report(message: str) -> None:
    """Print an error line on stderr."""
    where = f"rank {process_rank()}: " if process_rank() else ""
    print(f"error: {where}{message}", file=sys.stderr, flush=True)


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank, which tells its own error, has ended."""
    return isinstance(error, RuntimeError) and bool(
        re.search("closed by peer|reset by peer|remote process exited", str(error), re.IGNORECASE)
    )


def _is_full_disk(error: Exception) -> bool:
    """Whether a logger, say, could not write."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def process_rank() -> int:
    """Return this process's rank as its launcher has set it, also before the processes meet."""
    return getattr(rank_zero_only, "rank", None) or 0


class KeepRuns(Callback):
    """Hydra callback that refuses a folder before Hydra writes anything there."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit where the sweep's folder holds runs already, or every rank would run the sweep."""
        folder = Path(config.hydra.sweep.dir)
        if (launch.processes_started() or 1) > 1:
            _refuse("-m cannot run below torchrun or srun; start each job of the sweep with them")
        if any(word.startswith("run=") for word in config.hydra.overrides.task):
            _refuse(
                "run=DIR continues one run, and -m starts several; continue a sweep with "
                "resume=auto and the same hydra.sweep.dir"
            )
        if config.get("resume") is None and any(folder.glob("*/checkpoints/last.ckpt")):
            _refuse(
                f"hydra.sweep.dir={folder} holds runs already; continue them with resume=auto, "
                "or choose another folder"
            )

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit where the config cannot start here, or each rank would make its own folder."""
        template = str(OmegaConf.to_container(config.hydra.run)["dir"])  # type: ignore[index]
        started = launch.processes_started() or 1
        if started > 1 and "${now:" in template and config.get("run") is None:
            _refuse(
                f"{started} processes need the same folder, and the time names one for each: "
                "add an argument such as hydra.run.dir=outputs/run_1"
            )
        try:
            resume.check(config)
            run, folder = config.get("run"), Path(config.hydra.run.dir)
            if run is not None and folder.absolute() != Path(str(run)).absolute():
                raise ConfigurationError(
                    f"run={run} and hydra.run.dir={folder} are two folders, expected one of them"
                )
            refuse_finished_run(folder, config)
        except ConfigurationError as error:
            _refuse(str(error))
        except OmegaConfBaseException:
            pass  # the folder's name cannot be resolved: Hydra is about to say so


def _refuse(message: str) -> NoReturn:
    """Exit with an error line from rank zero: Hydra would turn an exception into a warning."""
    if process_rank() == 0:
        report(message)
    sys.exit(EXIT_STATUS)


def refuse_finished_run(folder: Path, config: DictConfig) -> None:
    """Raise `ConfigurationError` where a new run would overwrite the checkpoints of ``folder``."""
    if resume.goes_on(config) or process_rank() != 0:
        return
    # Before Hydra has made the folder, the config cannot name one of its own choice.
    folders = (folder / "checkpoints", resume.checkpoint_folder(config, folder))
    last = next((f / "last.ckpt" for f in folders if (f / "last.ckpt").exists()), None)
    if last is not None:
        raise ConfigurationError(
            f"hydra.run.dir={folder} holds a run already; continue it with resume=auto, "
            f"start from its weights with init_from={last}, or choose another folder"
        )


@contextmanager
def environment_variable(name: str, value: str | None) -> Iterator[None]:
    """Set (or, with None, unset) an environment variable for a while."""
    before = os.environ.get(name)
    _set_environment(name, value)
    try:
        yield
    finally:
        _set_environment(name, before)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def slug(text: object) -> str:
    """Return ``text`` as the name of a folder: ``"ALE/Pong-v5"`` becomes ``"ALE-Pong-v5"``."""
    return re.sub(r"[^\w.]+", "-", str(text)).strip("-.") or "unnamed"


def first(*values: object) -> object:
    """Return the first of ``values`` that is not None."""
    return next((value for value in values if value is not None), None)


def explain(error: BaseException, config_name: str = "train") -> str:
    """Return one line on what was wrong and, where there is one, the nearest valid choice."""
    if isinstance(error, RunError):
        return _one_line("; ".join([str(error), *getattr(error, "__notes__", ())]))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _explain_option(error.missing_cfg_file, list(error.options))
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error)
    key = getattr(error.__cause__, "full_key", None) or getattr(error, "full_key", None)
    text = str(error)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return explain_missing(missing[1])
    if key and ("not in struct" in str(error.__cause__) or "not in '" in str(error.__cause__)):
        return _explain_key(str(key), config_name)
    if "Config group override must be" in text:
        return "a config group cannot be null, expected the name of one of its options"
    if ambiguous := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{ambiguous[1]} is several values: add -m to run each, or [] to make them a list"
    text = re.split("See https://|Config search path:|full_key:", text)[0]
    return _one_line(re.sub(r" expecting \{.*\}", "", text))


def explain_missing(key: str) -> str:
    """Return one line on a value that the user has to give."""
    example = "env.id=Pong-v5" if key == "env.id" else f"{key}=VALUE"
    return f"{key} is not set, expected an argument such as {example}"


def explain_call(function: Callable[..., Any], error: BaseException) -> str:
    """Return one line on why ``function`` could not be called; its own mistakes unchanged."""
    if isinstance(error, ConfigurationError):
        return _one_line(str(error))
    name = getattr(function, "__name__", str(function))
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, TypeError) and unexpected:
        arguments = inspect.signature(function).parameters
        return f"{name} has no argument {unexpected[1]!r}{nearest(unexpected[1], arguments)}"
    if isinstance(error, TypeError) and "missing" in str(error) and "required" in str(error):
        missing = " and ".join(re.findall(r"'(\w+)'", str(error)))
        return f"{name} needs {missing}, expected a value, or _partial_: true to call it later"
    return f"{name} failed: {type(error).__name__}: {_one_line(str(error))}"


def _explain_option(file: str, options: list[str]) -> str:
    group, _, option = file.rpartition("/")
    try:
        check_choice(group, option, options)
    except ConfigurationError as error:
        return str(error)
    return f"{group}={option} cannot be read"


def _explain_instantiation(error: InstantiationException) -> str:
    place = re.search(r"full_key: (\S+)", str(error))
    key = f"{place[1]}: " if place else ""
    target = re.search(r"Error in call to target '([^']+)'", str(error))
    cause = error.__cause__
    if target and cause:
        if isinstance(cause, ConfigurationError):
            return _one_line(str(cause))
        return key + explain_call(hydra.utils.get_object(target[1]), cause)
    return key + _one_line(str(error).split(", set env var")[0].split("\nfull_key")[0])


def _explain_key(key: str, config_name: str) -> str:
    parent, _, leaf = key.rpartition(".")
    if parent == "env.options":
        return f"{key} is not among the options of this preset; +{key}=VALUE adds it"
    known = known_keys(config_name, with_hydra=parent.startswith("hydra"))
    if key in known:
        return f"{key} cannot be replaced as a whole, expected an option's name or {key}.KEY=VALUE"
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    siblings = [name for name in siblings if not name.startswith("_")]
    known = [k for k in known if not k.rpartition(".")[2].startswith("_")]
    namesakes = [k for k in known if k.rpartition(".")[2] == leaf]
    if namesakes:
        hint = nearest(key, namesakes) or f"; did you mean {namesakes[0]!r}?"
    elif parent and siblings:
        hint = re.sub("'(.+?)'", rf"'{parent}.\1'", nearest(leaf, siblings))
        hint = hint or f", expected one of {', '.join(siblings)}"
    else:
        hint = nearest(key, known) or "; --cfg job shows all there are"
    return f"there is no key {key!r}{hint}"


def known_keys(config_name: str, *, with_hydra: bool = False) -> list[str]:
    """Return every dotted key of the config, with the groups' options of this command line."""
    groups = [folder.name for folder in config_directory().iterdir() if folder.is_dir()]
    chosen = [word for word in sys.argv[1:] if word.split("=")[0] in groups]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        for overrides in (chosen, []):
            try:
                config = hydra.compose(config_name, overrides, return_hydra_config=with_hydra)
            except (HydraException, ValueError):  # a sweep, or a group of the user's own
                continue
            return list(dict.fromkeys([*groups, *_dotted_keys(config)]))
    return groups


def _dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, config):
        key = f"{prefix}{name}"
        yield key
        if OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name):
            continue
        if isinstance(config[name], DictConfig):
            yield from _dotted_keys(config[name], f"{key}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
