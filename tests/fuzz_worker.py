"""Runs command lines for `test_fuzz`, each in a copy of a process that has imported everything.

A copy has an empty folder with a trained run in it, and dies alone where a command line kills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

MEMORY = 6 * 2**30
"""Address space of a copy in bytes: what does not fit must end in a line, not in the swap."""

TINY = [
    "debug=default",
    "total_iterations=2",
    "trainer.accelerator=cpu",
    "logger=csv",
    "compile=trace",
    "hydra.run.dir=run",
    "++trainer.max_steps=2",  # of whatever length the run would be
]

TRAINED = "trained"
"""The folder of a run that each command line finds."""

UNREAD = "| true"
"""As a last word: nobody reads what is printed."""


class Worker:
    """Judges command lines."""

    def __init__(self, timeout: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def problem(self, words: list[str]) -> str | None:
        """Run ``words``; return what was wrong with how it ended, None where nothing was.

        What hung has to do so again: the machine may have been busy.
        """
        problem = self._problem(words)
        return self._problem(words) if problem and problem.startswith("hung") else problem

    def _problem(self, words: list[str]) -> str | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def judge(status: int | None, stderr: str) -> str | None:
    """Return what is wrong with an exit status, None of what hung, and what was printed."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in stderr or "Exception ignored" in stderr:
        return "a traceback: " + lines[-1]
    if status is None:
        return "hung"
    if status < 0:
        return f"the process died by {signal.Signals(-status).name}"
    if status == 0 and not errors:
        return None
    if status == 2 and len(errors) == 1:
        return None if len(errors[0]) < 2000 else f"a line of {len(errors[0])}"
    return f"status {status} with {len(errors)} error lines: {stderr[-500:]}"


def run(words: list[str], trained: Path | None, timeout: float) -> tuple[int | None, str]:
    """Run a command line in a folder of its own; return its exit status and stderr."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+b") as output:
        if trained is not None:
            shutil.copytree(trained, Path(name) / TRAINED)
        child = os.fork()
        if child == 0:
            _be(words, Path(name), output.fileno())
        descriptor = os.pidfd_open(child)
        ended, _, _ = select.select([descriptor], [], [], timeout)
        os.close(descriptor)
        for pid in _family(child):  # what it has started does not outlive it
            with contextlib.suppress(ProcessLookupError):
                if pid != child or not ended:
                    os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status if ended else None, output.read().decode(errors="replace")


def _family(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return [pid, *(below for child in children for below in _family(child))]


def _be(words: list[str], folder: Path, stderr: int) -> NoReturn:
    """Be the command line, in this process."""
    os.setsid()
    os.chdir(folder)
    os.dup2(stderr, 2)
    stdout = os.open(os.devnull, os.O_WRONLY)
    if words[-1:] == [UNREAD]:
        words = words[:-1]
        reader, stdout = os.pipe()
        os.close(reader)
    os.dup2(stdout, 1)
    status = main_of(words)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120  # as Python ends
    os._exit(status)


def main_of(words: list[str]) -> int:
    """Run a command line in this process; return its exit status."""
    from ppo1_lightning import __main__ as command_line

    sys.argv = [command_line.__file__, *words]  # Lightning starts it again for each rank
    try:
        command_line.main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def warm_up() -> None:
    """Import what the commands do, and train a run in the current folder."""
    import matplotlib.figure  # noqa: F401
    import optuna  # noqa: F401
    import torch.distributed.launcher.api  # noqa: F401

    import ppo1_lightning.commands.tune
    import ppo1_lightning.runs.export  # noqa: F401

    main_of([*TINY, "env=cartpole", f"hydra.run.dir={TRAINED}"])
    main_of(["num_env=1"])
    main_of(["evaluate", f"run={TRAINED}", "episodes=1"])
    main_of(["record", f"run={TRAINED}", "max_steps=2"])
    main_of(["report", TRAINED])


def serve(timeout: float) -> None:
    """Answer each line of words with a line that says what was wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what runs print
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not be in the copies
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrokenPipeError):
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.chdir(folder)
        warm_up()
        for line in sys.stdin:
            problem = judge(*run(json.loads(line), Path(folder) / TRAINED, timeout))
            print(json.dumps(problem), file=answers, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdecimal():
        serve(float(sys.argv[1]))
    else:  # one command line, by hand: python tests/fuzz_worker.py num_envs=-1
        print(*run(sys.argv[1:], None, 60))
