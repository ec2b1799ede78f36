"""What the command line sets for its process, each in one of its own."""

from __future__ import annotations

import errno
import io
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from ppo1_lightning.commands.process import outlive_readers

pytestmark = pytest.mark.heavy

COUNT_FAULTS = """
import resource
import sys
import torch
from ppo1_lightning.commands.process import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)

def allocate():
    return [torch.ones(mebibytes * 2**18) for mebibytes in (12, 24, 40)]

# until the gaps that alignment leaves have grown together
for _ in range(20):
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told to keep memory"
)


def count_faults(how: str, **environment: str) -> tuple[str, int]:
    """Return what it returned, and the faults of allocating 76 MiB once more."""
    chosen = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, how],
        env={**chosen, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@needs_glibc
@pytest.mark.slow
def test_what_is_freed_is_kept_for_the_next_iteration() -> None:
    _, before = count_faults("leave")
    kept, after = count_faults("keep")
    assert kept == "True"
    assert before > 5000  # of 4 KiB each, or the measurement itself means nothing
    assert after < 100


@needs_glibc
@pytest.mark.parametrize(
    "choice", [{"MALLOC_MMAP_MAX_": "1000"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}]
)
def test_what_the_user_has_chosen_stays(choice: dict[str, str]) -> None:
    kept, faults = count_faults("keep", **choice)
    assert kept == "False"
    assert faults > 5000


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_the_command_line_sets_how_long_threads_spin_before_pytorch_is_loaded(
    chosen: dict[str, str], spins: str
):
    code = """
import os, sys, types, ppo1_lightning.__main__ as command_line
assert "torch" not in sys.modules
run = lambda *_: print(os.environ.get("GOMP_SPINCOUNT"))
import ppo1_lightning.commands as commands
commands.config = types.SimpleNamespace(run=run)
sys.modules["ppo1_lightning.commands.config"] = commands.config
command_line.main()
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True, env=kept | chosen).strip() == spins


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_reads_what_is_printed(closed: bool) -> None:
    """Neither a pipe's end nor a stream that is closed ends what runs, or makes a traceback."""
    code = """
import logging, sys
from ppo1_lightning.commands.process import outlive_readers

logging.basicConfig(stream=sys.stdout, level=logging.INFO)
with outlive_readers():
    logging.getLogger().handlers[0].stream = sys.stdout
    for line in range(3):
        print(line, flush=True)
        logging.info("%d", line)
    print("reached", file=sys.stderr)
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=None if closed else writer,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.close(1)) if closed else None,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "reached\n")


@pytest.mark.parametrize(
    ("error", "written"), [(errno.ENOSPC, "second\n"), (errno.EAGAIN, "second\n"), (errno.EIO, "")]
)
def test_a_line_that_is_lost_for_a_moment(
    error: int, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is written, unless nobody reads."""

    class Disk(io.FileIO):
        full = True

        def write(self, data: Any) -> int:
            if self.full:
                raise OSError(error, os.strerror(error))
            return super().write(data)

    disk = Disk(tmp_path / "log", "w")
    with io.TextIOWrapper(cast(Any, disk), write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with outlive_readers():
            print("first")
            disk.full = False
            print("second")
    assert (tmp_path / "log").read_text().lstrip("\n") == written


def test_an_environment_that_closes_the_output_does_not_silence_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with outlive_readers():
        sys.stdout.close()
        print("reached")
    assert capsys.readouterr().out == "reached\n"


IMPORT = """
import gc
from ppo1_lightning.commands.process import imported

looked = []
gc.callbacks.append(lambda phase, info: looked.append(phase))
imported("config")
print(len(looked), gc.isenabled(), gc.get_freeze_count() > 100_000)
kept = [[] for _ in range(1000)]
before = gc.get_freeze_count()
imported("config")
print(gc.get_freeze_count() == before)
try:
    imported("nothing")
except ImportError:
    print(gc.isenabled())
"""


def test_no_garbage_is_looked_for_among_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "True", "True", "True", "True"]
