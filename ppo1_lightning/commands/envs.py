"""``python -m ppo1_lightning envs [PATTERN]``: what can be trained here, and how it would be.

With ``--check`` each is trained for two iterations, in a process of its own.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppo1_lightning import simulators
from ppo1_lightning.commands.ids import algorithm_for, family_of
from ppo1_lightning.commands.process import refuse
from ppo1_lightning.errors import RunError, nearest, one_line
from ppo1_lightning.policies.auto import architecture_for
from ppo1_lightning.policies.spaces import name_of
from ppo1_lightning.runs.untrusted import printable
from ppo1_lightning.simulators.base import EnvironmentSpec

SECONDS = 120
"""After which an environment that is checked is taken to hang."""

SMALL = [
    "num_envs=2",
    "num_steps=32",
    "algo.minibatch_size=32",
    "total_steps=null",
    "total_iterations=2",
    "compile=false",
    "env.num_threads=1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "logger=none",
]
"""Of a check: two iterations that learn."""


_TRAINED = "trained"
"""File that a check leaves behind where it has come to its end."""


class Listed(NamedTuple):
    """How an environment would be trained, or why it cannot be."""

    env_id: str
    observations: str = ""
    actions: str = ""
    policy: str = ""
    preset: str = ""
    refusal: str = ""


class Checked(NamedTuple):
    """What came of a check: ``trains``, ``refused`` in one line, or what must not be."""

    env_id: str
    outcome: str  # or: traceback, crash, hang
    said: str
    seconds: float


def main() -> None:
    """List, or check, the environments that match."""
    parser = argparse.ArgumentParser(prog="python -m ppo1_lightning envs", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="part of an id, or with * and ?")
    parser.add_argument("--check", action="store_true", help="train each for two iterations")
    parser.add_argument("--output", help="write the table here too, as Markdown")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="checked at once")
    arguments = parser.parse_args()
    output = None if arguments.output is None else Path(arguments.output)
    chosen = matching(arguments.pattern)
    if not chosen:
        hint = nearest(arguments.pattern, simulators.ids()) or ", expected part of one"
        refuse(f"no environment's id has {arguments.pattern!r} in it{hint}")
    if output is not None:
        with _refusals_told(f"--output={arguments.output}"):
            output.open("a").close()  # before a check of hours, not after it
    kind = Checked if arguments.check else Listed
    rows: list[Any] = []
    try:
        if arguments.check:
            _tell(check(chosen, arguments.workers), len(chosen), rows)
        else:
            rows += map(listed, chosen)
            _print(rows)
    finally:  # also what was checked until somebody interrupted
        if output is not None and rows:
            with _refusals_told(f"--output={arguments.output}"):
                write(output, kind._fields, rows)


@contextmanager
def _refusals_told(what: str) -> Iterator[None]:
    """End in one line where the system does not let a file be written."""
    try:
        yield
    except OSError as error:
        refuse(f"{what} cannot be written ({error.strerror or error})")


def matching(pattern: str) -> list[str]:
    """Return the ids of EnvPool, then those that only Gymnasium has, in which a pattern occurs.

    With a module before a colon those of the module: ``my_package:*``; an id is itself.
    """
    module, _, part = pattern.rpartition(":")
    if not module:
        return _matching(simulators.ids(), "", pattern)
    found = _matching(simulators.ids_of(module), f"{module}:", part)
    if pattern in found or not found:  # an id; env= takes it as it is, or refuses it in a line
        return [pattern]
    return found


def _matching(ids: Sequence[str], prefix: str, part: str) -> list[str]:
    glob = part if set(part) & set("*?[") else f"*{part}*"
    return [i for i in ids if fnmatch.fnmatch(i.lower(), f"{prefix}{glob}".lower())]


def listed(env_id: str) -> Listed:
    """Return how an environment would be trained.

    One of EnvPool's is not made for it, and one of Gymnasium's only if it is the user's own.
    """
    preset = family_of(env_id)
    if not simulators.is_envpool_s(env_id) and ":" not in env_id:
        return Listed(env_id, "", "", "auto", preset)
    try:
        observation, action = simulators.make_adapters(EnvironmentSpec(env_id))
        policy = architecture_for(observation.space)
    except RunError as error:
        return Listed(env_id, preset=preset, refusal=one_line(error))
    if algorithm := algorithm_for(preset, observation.space):
        preset = f"{preset}, algo={algorithm}"
    return Listed(env_id, name_of(observation.space), name_of(action.native), policy, preset)


def check(env_ids: Sequence[str], workers: int) -> Iterator[Checked]:
    """Train each for two iterations, ``workers`` at once; yield them as they end."""
    method = "spawn" if sys.platform == "win32" else "forkserver"
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload(["ppo1_lightning.commands.train"])  # the imports, once
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from pool.map(lambda env_id: _check(context, env_id), env_ids)


def _check(context: Any, env_id: str) -> Checked:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_train, args=(env_id, folder))
        process.start()
        process.join(SECONDS)
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        text = Path(folder, "said.txt")  # it may have ended before it wrote a word
        said = (text.read_text(errors="replace") if text.exists() else "").strip().splitlines()
        has_trained = Path(folder, _TRAINED).exists()
    outcome, line = _outcome(process.exitcode or 0, hangs, has_trained, said or [""])
    return Checked(env_id, outcome, printable(line), round(time.monotonic() - started, 1))


def _outcome(status: int, hangs: bool, has_trained: bool, said: list[str]) -> tuple[str, str]:
    if hangs:
        return "hang", f"nothing after {SECONDS} s"
    if any(line.startswith("Traceback") for line in said):
        return "traceback", said[-1]
    if status < 0:
        return "crash", signal.Signals(-status).name
    if has_trained:
        return "trains", ""
    if said[-1].startswith("error: "):
        return "refused", said[-1].removeprefix("error: ")
    return "crash", f"it ended the process, exit status {status}"


def _train(env_id: str, folder: str) -> None:
    """Be the command line, in a process of its own."""
    from ppo1_lightning.commands import config
    from ppo1_lightning.commands.train import train

    said = os.open(Path(folder, "said.txt"), os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.argv = ["ppo1_lightning", f"env={env_id}", *SMALL, f"hydra.run.dir={folder}/run"]
    config.run(train, "train")
    Path(folder, _TRAINED).touch()


def _tell(checks: Iterator[Checked], count: int, rows: list[Checked]) -> None:
    """Print each check as it ends, add it to ``rows``, and print how many came to what."""
    for row in checks:
        rows.append(row)
        print(f"{len(rows)}/{count} {row.env_id}: {row.outcome} {row.said}", flush=True)
    counts = Counter(row.outcome for row in rows)
    print(", ".join(f"{outcome} {number}" for outcome, number in counts.most_common()))


def _print(rows: Sequence[Listed]) -> None:
    table = Table(*Listed._fields[:-1], box=None)
    for row in rows:
        cells = [row.env_id, row.refusal] if row.refusal else row[:-1]
        table.add_row(*map(Text, cells))  # no markup
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    refused = sum(bool(row.refusal) for row in rows)
    unknown = sum(not row.refusal and not row.observations for row in rows)
    known = len(rows) - refused - unknown
    not_made = f"; {unknown} of Gymnasium's are not made to look and may be" if unknown else ""
    print(f"{known} of {len(rows)} can be trained: env=ID{not_made}")


def write(file: Path, title: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
    """Write a table in Markdown."""
    lines = [title, ["---"] * len(title), *rows]
    cells = ([_cell(str(cell)) for cell in line] for line in lines)
    file.write_text("".join(f"| {' | '.join(line)} |\n" for line in cells), encoding="utf-8")


def _cell(text: str) -> str:
    """Return text as a cell of a Markdown table: one line, no HTML, no other cell."""
    return escape(" ".join(printable(text).split()), quote=False).replace("|", "\\|")
