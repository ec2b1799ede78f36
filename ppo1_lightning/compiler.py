"""Compiles graphs ahead of time to machine code, and keeps it on disk for the next run.

`torch.compile` calls its kernels from Python. A graph that is compiled ahead of time
(`AOTInductor`) is one call into C++, which for small networks is twice as fast, and three times
where it alternates with other work, as acting does with simulating.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

_log = logging.getLogger(__name__)

_Run = Callable[[list[Tensor]], list[Tensor]]


def compile_ahead(graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Return a function that computes what ``graph`` does, for CPU tensors like ``examples``.

    It looks at neither shapes nor dtypes: other tensors are undefined behaviour.
    """
    package = cache_folder() / f"{_key(graph, examples)}.pt2"
    run = _load(package) if package.exists() else None
    if run is None:
        with _one_at_a_time(package):  # the other ranks of this machine wait for the first
            run = _load(package) if package.exists() else None
            if run is None:
                _compile(graph, examples, package)
                run = _load(package)
    if run is None:
        raise RuntimeError(f"the compiled graph {package} cannot be loaded")
    return lambda *tensors: run(list(tensors))


def cache_folder() -> Path:
    """Return the folder of compiled graphs, made if need be: ``$XDG_CACHE_HOME/ppo1_lightning``.

    That is below ``~/.cache`` by default. Since code is loaded from there, a folder that somebody
    else may write to is not used; without one, graphs are kept for this process only.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "ppo1_lightning"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if is_own and os.access(folder, os.W_OK):
            return folder
        return _own_folder(f"{folder} is not this user's alone")
    except (OSError, RuntimeError) as error:
        return _own_folder(str(error))


@functools.cache
def _own_folder(reason: str) -> Path:
    _log.warning("compiled graphs are not kept for the next run: %s", reason)
    folder = tempfile.TemporaryDirectory(prefix="ppo1_lightning_")
    _folders.append(folder)  # until the process ends
    return Path(folder.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


@contextlib.contextmanager
def _one_at_a_time(package: Path) -> Iterator[None]:
    """Hold a file of its own, which the system lets go of however this process ends."""
    with package.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(OSError):  # not every file system can
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(graph: GraphModule, examples: Sequence[Tensor], package: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory(dir=package.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own code
        program = torch.export.export(graph, tuple(examples))
        made = aoti_compile_and_package(
            program, package_path=str(Path(folder) / "made.pt2"), inductor_configs=_options()
        )
        os.replace(made, package)  # so that another process sees all of it or nothing


def _load(package: Path) -> _Run | None:
    """Load a compiled graph; None where it is damaged or made for another system."""
    from torch._inductor import aoti_load_package

    try:
        return aoti_load_package(str(package), run_single_threaded=True).loader.run
    except (RuntimeError, OSError):
        return None


def _options() -> dict[str, Any]:
    """Return options that halve the compile time where this PyTorch has them."""
    from torch._inductor import config

    known = hasattr(config.aot_inductor, "compile_wrapper_opt_level")
    return {"aot_inductor.compile_wrapper_opt_level": "O0"} if known else {}


def _key(graph: GraphModule, examples: Sequence[Tensor]) -> str:
    """Hash everything that the machine code depends on."""
    tensors = [*examples, *graph.state_dict().values()]
    layouts = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
    constants = [tensor.tolist() for tensor in graph.state_dict().values()]
    code = [module.code for module in graph.modules() if isinstance(module, GraphModule)]
    versions = torch.__version__, torch.version.git_version, _processor(), torch.get_num_threads()
    content = code, layouts, constants, versions, _options()
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what tells the instructions that this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
