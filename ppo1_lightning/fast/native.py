"""C++ of this package, made where it runs and kept for the next run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ppo1_lightning import system
from ppo1_lightning.distributed import local_ranks
from ppo1_lightning.errors import one_line
from ppo1_lightning.fast import processes

_log = logging.getLogger(__name__)


def load(source: Path, *options: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Load a C++ file as a library, compiled with these options if need be.

    It may include the headers (``.h``) next to it.

    Raises:
        RuntimeError: the compiler is missing or fails.
        OSError: what it made cannot be loaded.
    """
    files = [source, *sorted(source.parent.glob("*.h"))]
    content = [file.read_bytes() for file in files], options, torch.__version__, processor()
    name = f"{source.stem}-{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}.so"
    library = cache_folder() / name
    try:
        return ctypes.CDLL(str(library), mode)
    except OSError:  # not there yet, or damaged
        _compile(source, options, library)
        return ctypes.CDLL(str(library), mode)


def load_operators(source: Path) -> ctypes.CDLL:
    """Load a C++ file of operators, so that compiled graphs find them.

    Raises:
        RuntimeError, OSError: see `load`; or a PyTorch whose graphs cannot call them.
    """
    from torch._inductor import config

    if not hasattr(config.aot_inductor, "custom_ops_to_c_shims"):
        raise RuntimeError(f"graphs of {torch.__version__} cannot call other operators")
    folder = Path(torch.__file__).parent
    options = "-std=c++17", "-O3", *machine_options(), "-fopenmp", f"-I{folder / 'include'}"
    libraries = f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"
    return load(source, *options, *libraries, mode=ctypes.RTLD_GLOBAL)


@functools.cache
def has_operators(source: Path) -> bool:
    """Tell whether `load_operators` works, once; where it does not, PyTorch's do their work."""
    try:
        load_operators(source)
    except (OSError, RuntimeError) as error:
        _log.warning("%s is left to PyTorch: %s", source.stem, error)
        return False
    return True


def compiler() -> str:
    """Return the C++ compiler that PyTorch calls too.

    Raises:
        RuntimeError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except RuntimeError as error:
        raise RuntimeError(f"{one_line(error)} (install one, or name it in CXX)") from error


def _compile(source: Path, options: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler(), "-shared", "-fPIC", str(source), "-o", str(made), *options]
        done = processes.run(command)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        os.replace(made, library)  # so that another process sees all of it or nothing


def own_caches() -> None:
    """Let PyTorch keep its code below our folder, unless the user has said where.

    Its own place is ``/tmp/torchinductor_USER``, which belongs to whoever made it first.
    """
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ.setdefault(name, str(cache_folder() / name.partition("_")[0].lower()))


def cache_folder() -> Path:
    """Return the folder of compiled graphs, made if need be: ``$XDG_CACHE_HOME/ppo1_lightning``.

    That is below ``~/.cache`` by default. Since code is loaded from there, a folder that somebody
    else may write to is not used; without one, graphs are kept for this process only.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "ppo1_lightning"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if system.is_own(folder.stat()) and os.access(folder, os.W_OK):
            return folder
        return _own_folder(f"{folder} is not this user's alone")
    except (OSError, RuntimeError) as error:
        return _own_folder(str(error))


@contextlib.contextmanager
def one_at_a_time(made: Path) -> Iterator[None]:
    """Hold a file beside what is made, which the system lets go of however this process ends.

    Not where the disk has no room for it, or the file system cannot.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(made.with_suffix(".lock").open("w"))
            system.lock(file.fileno(), wait=True)
        yield


def seconds_of_compiling(device: str) -> float:
    """Return what compiling a run's graphs for "cpu" or "cuda" took the last time here.

    At least three quarters of what it took where it was measured (docs/performance.md): that run's
    may have been small, or have lacked one graph only.
    """
    measured = 10.0 if device == "cpu" else 20.0
    try:
        return max(0.75 * measured, float((cache_folder() / f"seconds_{device}").read_text()))
    except (OSError, ValueError):
        return measured


def note_seconds_of_compiling(device: str, seconds: float) -> None:
    """Keep it for the runs to come, where there is room; they see all of it or nothing.

    Of several ranks on this machine one does.
    """
    if local_ranks()[1]:
        return
    with contextlib.suppress(OSError):
        file = cache_folder() / f"seconds_{device}"
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(f"{seconds:.3f}")
        part.replace(file)


@functools.cache
def _own_folder(reason: str) -> Path:
    _log.warning("compiled graphs are not kept for the next run: %s", reason)
    folder = tempfile.TemporaryDirectory(prefix="ppo1_lightning_")
    _folders.append(folder)  # until the process ends
    return Path(folder.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def processor() -> str:
    """Return what tells the instructions that this processor has, and those that are asked for."""
    return f"{_instructions()} {[os.environ.get(name) for name in _OF_PYTORCH]}"


_OF_PYTORCH = "TORCHINDUCTOR_CPP_MARCH", "ATEN_CPU_CAPABILITY"
"""Variables by which PyTorch lets one ask for older instructions; the first holds for ours, too."""


def machine_options() -> list[str]:
    """Return the compiler's options for this processor, or for another one that is asked for."""
    machine = os.environ.get(_OF_PYTORCH[0], "native")
    return [f"-march={machine}"] if machine else []


def _instructions() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
