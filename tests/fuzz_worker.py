"""Runs command lines in a process of its own, for `test_fuzz`: one a line, and survives most.

Where EnvPool aborts, the process dies and its parent starts another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEMORY = 16 * 2**30
"""Address space of a worker in bytes: what does not fit must end in a line, not in the swap."""


class Worker:
    """Judges command lines, each in an empty folder; a new process where the last one died."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.restarts = 0
        self._process: subprocess.Popen[str] | None = None
        self._done = 0

    def problem(self, words: list[str]) -> str | None:
        """Run ``words``; return what was wrong with how it ended, None where nothing was.

        What went wrong has to do so in a new process again: a case shows its own faults only, and
        not that the machine was busy.
        """
        if self._problem(words) is None:
            return None
        self.close()
        return self._problem(words)

    def _problem(self, words: list[str]) -> str | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self.timeout)
        if not ready:
            self.close()
            return f"hung for {self.timeout} s"
        answer = process.stdout.readline()
        if not answer:
            status = process.wait()
            self.close()
            return f"the process died with status {status}"
        self._done += 1
        if self._done % 100 == 0:  # what one case leaves behind shall not add up
            self.close()
        return json.loads(answer)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self.restarts += 1
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def judge(status: Any, stderr: str) -> str | None:
    """Return what is wrong with an exit status and what was printed."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if "Traceback" in stderr:
        return "a traceback: " + stderr.strip().splitlines()[-1]
    if status == 0 and not errors:
        return None
    if status == 2 and len(errors) == 1:
        return None if len(errors[0]) < 2000 else f"a line of {len(errors[0])} characters"
    return f"status {status} with {len(errors)} error lines: {stderr[-500:]}"


def run(words: list[str]) -> tuple[Any, str]:
    """Run the command line in an empty folder; return its exit status and stderr."""
    import traceback

    sys.argv = ["ppo1-lightning", *words]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        os.chdir(folder)
        kept = os.dup(2)
        os.dup2(output.fileno(), 2)
        status: Any = 0
        try:
            from ppo1_lightning import __main__ as command_line

            command_line.main()
        except SystemExit as exit_:
            status = exit_.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            os.chdir(before)
        output.seek(0)
        return status, output.read()


def main() -> None:
    """Answer each line of words with a line that says what was wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what runs print
    os.environ.pop("HYDRA_FULL_ERROR", None)
    with tempfile.TemporaryDirectory() as cache, contextlib.suppress(BrokenPipeError):
        os.environ["XDG_CACHE_HOME"] = cache
        for line in sys.stdin:
            print(json.dumps(judge(*run(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    if Path(sys.argv[-1]).suffix == ".py":
        main()
    else:  # one command line, by hand: python tests/fuzz_worker.py num_envs=-1
        print(*run(sys.argv[1:]))
