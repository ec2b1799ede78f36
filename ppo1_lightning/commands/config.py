"""Command lines on top of Hydra: where the configs are, and mistakes that end in one line."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import to_absolute_path
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo1_lightning import distributed, simulators
from ppo1_lightning.commands import ids, sweep_report, watchdog
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands.process import EXIT_STATUS
from ppo1_lightning.errors import RunError, nearest
from ppo1_lightning.runs.instantiation import nearest_target
from ppo1_lightning.runs.trackers import kept
from ppo1_lightning.runs.untrusted import printable

MISTAKES = (RunError, MisconfigurationException, HydraException, OmegaConfBaseException)
"""Exceptions that are told in one line; anything else is a bug and keeps its traceback."""

_NOISE = re.compile(
    r"See https://|Config search path|full_key:|, set env var|\nAvailable options| expecting \{"
)
"""Where the part of Hydra's messages begins that is of no use to who typed a command."""


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
    register_resolvers()
    ids.register()
    _show_plainly()
    sys.argv = [sys.argv[0], *map(_quoted, ids.joined(sys.argv[1:]))]
    main = hydra.main(str(config_directory()), config_name, version_base="1.3")
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main(task)()
        return

    @functools.wraps(task)
    def guarded(config: DictConfig) -> Any:
        _locate(config)
        with environment_variable("HYDRA_FULL_ERROR", None):  # not for child processes
            return told(task, config)

    try:
        with environment_variable("HYDRA_FULL_ERROR", "1"):  # Hydra raises its errors to us
            main(guarded)()
    except JobFailed as error:
        sweep_report.write()
        sys.exit(error.status)
    except Exception as error:  # of Hydra, before the task or after it
        report(explain(error, config_name))
        sys.exit(EXIT_STATUS)
    sweep_report.write()


def _show_plainly() -> None:
    """Let this process show what a log's names hide, and tell a thread's fault in one line."""
    logging.setLogRecordFactory(_without_control_characters)
    threading.excepthook = _told_of_thread


def _without_control_characters(*arguments: Any, **named: Any) -> logging.LogRecord:
    """Return a record whose message shows control characters: names may come from a stranger."""
    record = logging.LogRecord(*arguments, **named)
    name = record.name or ""  # none yet where `logging.makeLogRecord` asks
    if name.partition(".")[0] == "ppo1_lightning":
        record.msg, record.args = printable(record.getMessage()), None
    return record


_PATHS = ("run", "ckpt_path", "init_from", "output")
"""Keys that name a file or a folder."""


def _quoted(word: str) -> str:
    """Return a word of the command line with an existing path quoted, in Hydra's grammar."""
    key, _, path = word.partition("=")
    if key not in _PATHS or not os.path.exists(path):  # no error of a long name, unlike `Path`
        return word
    escaped = path.replace("'", r"\'")
    return f"{key}='{escaped}'"


def _locate(config: DictConfig) -> None:
    """Make paths absolute, from where the command was typed: ``hydra.job.chdir`` goes elsewhere."""
    if not HydraConfig.get().job.chdir:
        return
    for key in _PATHS:
        if (path := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(config, key, to_absolute_path(str(path)))


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


def told(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Return ``task(config)``, its errors told where they happen: the end of a job, not of a sweep.

    Raises:
        JobFailed: an error was told, and this is a job of a sweep.
        SystemExit: an error was told, and this is not.
    """
    _show_plainly()  # also in a process that `run` has not started: a rank, a job of joblib's
    # of Lightning's own code: nobody who reads it can do anything about it
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    if process_rank():
        logging.getLogger().setLevel(logging.WARNING)  # rank zero speaks for all
    watch = None
    try:
        with watchdog.watching(_say) as watch:
            return task(config)
    except Exception as error:
        status = _tell(error)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise JobFailed(status) from None
        sys.exit(status)
    finally:
        watchdog.end_orphan(watch)


def _tell(error: Exception) -> int:
    """Print what is to be said of an error; return the exit status that it makes."""
    message, status = "", 1
    if isinstance(error, launch.RankError):
        message, status = str(error), error.status
    elif os.environ.get("HYDRA_FULL_ERROR") == "1":  # in a rank
        traceback.print_exc()
    elif isinstance(error, MISTAKES) or is_of_a_file(error):
        by_rank_zero = getattr(error, "on_all_ranks", False) and process_rank()
        message, status = "" if by_rank_zero else explain(error), EXIT_STATUS
    elif _is_lost_peer(error):
        print(f"rank {process_rank()} stopped, for another rank ended", file=sys.stderr)
    else:
        traceback.print_exc()
    if message:
        _say(message)
    return status


def _say(message: str) -> None:
    """Tell an error, also in the job's log."""
    report(message)
    logging.getLogger("ppo1_lightning.errors").error(message)


def report(message: str) -> None:
    """Print an error line on stderr."""
    where = f"rank {process_rank()}: " if process_rank() else ""
    print(f"error: {where}{printable(message)}", file=sys.stderr, flush=True)


def _told_of_thread(failed: Any) -> None:
    """Tell in one line that a thread, TensorBoard's, could not write: it is raised in ours, too."""
    if failed.exc_value is not None and is_of_a_file(failed.exc_value):
        print(printable(explain(failed.exc_value)), file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank, which tells its own error, has ended."""
    ranks = max(distributed.world_size(), launch.processes_started() or 1)
    return (
        ranks > 1
        and isinstance(error, RuntimeError)
        and bool(
            re.search(
                "closed by peer|reset by peer|remote process exited|broken pipe",
                str(error),
                re.IGNORECASE,
            )
        )
    )


_OF_A_NETWORK = (ConnectionError, TimeoutError, socket.gaierror, socket.herror)
_OF_A_FILE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE),
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE),
}


def is_of_a_file(error: BaseException) -> bool:
    """Whether the system could not read or write one: a full disk, a permission, a folder gone."""
    if not isinstance(error, OSError) or isinstance(error, _OF_A_NETWORK) or not error.errno:
        return False
    return error.errno in _OF_A_FILE or error.filename is not None


def process_rank() -> int:
    """Return this process's rank as its launcher has set it, also before the processes meet."""
    return getattr(rank_zero_only, "rank", None) or 0


@contextmanager
def environment_variable(name: str, value: str | None) -> Iterator[None]:
    """Set (or, with None, unset) an environment variable for a while."""
    before = {name: os.environ.pop(name)} if name in os.environ else {}
    os.environ.update({} if value is None else {name: value})
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update(before)


def slug(text: object) -> str:
    """Return ``text`` as the name of a folder: ``"ALE/Pong-v5"`` becomes ``"ALE-Pong-v5"``."""
    return re.sub(r"[^\w.]+", "-", str(text)).strip("-.") or "unnamed"


def first(*values: object) -> object:
    """Return the first of ``values`` that is not None."""
    return next((value for value in values if value is not None), None)


def explain(error: BaseException, config_name: str = "train") -> str:
    """Return one line: our own message, or the beginning of another library's and a near name."""
    if isinstance(error, RunError):
        return _one_line("; ".join([str(error), *getattr(error, "__notes__", ())]))
    if isinstance(error, OSError) and is_of_a_file(error):
        return f"{error.filename or 'a file'} could not be read or written ({error.strerror})"
    cause = error.__cause__
    if isinstance(cause, RunError) or (cause and is_of_a_file(cause)):  # in what Hydra instantiates
        return explain(cause)
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]} is not given, expected {missing[1]}=VALUE"
    return _one_line(_NOISE.split(str(error))[0]) + _nearest(error, config_name)


def _nearest(error: BaseException, config_name: str) -> str:
    """Return ``"; did you mean 'NAME'?"`` for an option or a key that does not exist, or ``""``."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).partition("/")
        if group == "env":
            return simulators.nearest_id(name, [*(error.options or ()), *simulators.ids()])
        return nearest(name, error.options or ())
    if not isinstance(error, ConfigCompositionException):
        return nearest_target(error)
    wrong = str(getattr(error.__cause__, "full_key", ""))
    chosen = (word for word in sys.argv[1:] if re.fullmatch(r"(env|algo|policy)=[\w/:.-]+", word))
    choices = [*chosen] if config_name == "train" and "." in wrong else []  # else one may be wrong
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose(config_name, choices, return_hydra_config=True)
    return nearest(wrong, _dotted_keys(OmegaConf.to_container(config)))


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from _dotted_keys(child, f"{prefix}{name}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
