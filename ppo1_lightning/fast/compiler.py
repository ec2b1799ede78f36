"""Compiles graphs ahead of time to machine code, and keeps it on disk for the next run.

`torch.compile` calls its kernels from Python. A graph that is compiled ahead of time
(`AOTInductor`) is one call into C++, which for small networks is twice as fast, and three times
where it alternates with other work, as acting does with simulating.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from ppo1_lightning.fast import native, winograd

_log = logging.getLogger(__name__)

Run = Callable[[int, int], None]
"""Calls a graph for rows ``first`` to ``end - 1`` of the tensors that it is bound to."""


def compile_ahead(graph: GraphModule, examples: Sequence[Tensor]) -> CompiledGraph:
    """Compile a graph that writes its results into its arguments, for CPU tensors like these."""
    package = native.cache_folder() / f"{_key(graph, examples)}.pt2"
    library = _load(package)
    if library is None:
        with _one_at_a_time(package):  # the other ranks of this machine wait for the first
            library = _load(package) or _compile(graph, examples, package)
    return CompiledGraph(library)


_Pointer = ctypes.c_void_p

_TENSOR_ROWS = np.dtype(
    [(name, np.int64) for name in ("data", "row_bytes", "ndim", "sizes", "strides", "dtype")]
)
"""See ``loop.cpp``."""


class CompiledGraph:
    """A graph as machine code, called through PyTorch's stable C functions.

    It looks at neither shapes nor dtypes: other tensors than those it was compiled for are
    undefined behaviour. While it runs, the interpreter's lock is free; two graphs may run at once,
    each in a thread of its own.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._model = _Pointer()
        create = library.AOTInductorModelContainerCreateWithDevice
        if create(ctypes.byref(self._model), ctypes.c_size_t(1), b"cpu", None):
            raise RuntimeError("the compiled graph cannot be started")
        delete = library.AOTInductorModelContainerDelete
        weakref.finalize(self, delete, self._model).atexit = False
        run = library.AOTInductorModelContainerRunSingleThreaded
        create_tensor = _torch().aoti_torch_create_tensor_from_blob
        self._functions = ctypes.cast(create_tensor, _Pointer), ctypes.cast(run, _Pointer)
        self._table: NDArray[Any] | None = None  # of the first tensors
        self._kept_alive: list[NDArray[Any]] = []

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
        """Return the graph for ``fixed`` and one row each of ``rows``, in this order."""
        if self._table is None:
            self._table = np.stack([*map(self._describe, [*fixed, *(t[0] for t in rows)])])
        table, tensors = self._table.copy(), (*fixed, *rows)
        table["data"] = [tensor.data_ptr() for tensor in tensors]
        table["row_bytes"] = [0] * len(fixed) + [t.stride(0) * t.element_size() for t in rows]
        arguments = *self._functions, self._model, table.ctypes.data, len(table)
        return functools.partial(_run, arguments, (self, table, tensors))

    def _describe(self, tensor: Tensor) -> NDArray[Any]:
        sizes, strides = (np.array(part, np.int64) for part in (tensor.shape, tensor.stride()))
        self._kept_alive += [sizes, strides]
        number = getattr(_torch(), f"aoti_torch_dtype_{str(tensor.dtype).removeprefix('torch.')}")
        row = 0, 0, tensor.ndim, sizes.ctypes.data, strides.ctypes.data, number()
        return np.array(row, _TENSOR_ROWS)


def _run(arguments: Sequence[Any], kept_alive: Any, first: int, end: int) -> None:
    if _loop()(*arguments, first, end):
        raise RuntimeError("a compiled graph failed; what it says is above")


@functools.cache
def _torch() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@functools.cache
def _loop() -> Callable[..., int]:
    """Return ``run_rows`` of ``loop.cpp``."""
    function = native.load(Path(__file__).with_name("loop.cpp"), "-O2").run_rows
    function.argtypes = [*[_Pointer] * 4, *[ctypes.c_int64] * 3]
    function.restype = ctypes.c_int32
    return function


@contextlib.contextmanager
def _one_at_a_time(package: Path) -> Iterator[None]:
    """Hold a file of its own, which the system lets go of however this process ends."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no room for it, or a file system that cannot
            file = stack.enter_context(package.with_suffix(".lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(graph: GraphModule, examples: Sequence[Tensor], package: Path) -> ctypes.CDLL:
    """Compile a graph and, where the disk has room, keep it as ``package``."""
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own code
        program = torch.export.export(graph, tuple(examples))
        # Not in the cache's folder: PyTorch ends the process where it cannot write all of it.
        made = Path(folder) / "made.pt2"
        aoti_compile_and_package(program, package_path=str(made), inductor_configs=_options())
        library = _load(package) if _kept(made, package) else _extract(made)
    if library is None:
        raise RuntimeError(f"the compiled graph {package} cannot be loaded")
    return library


def _kept(made: Path, package: Path) -> bool:
    """Copy a file so that another process sees all of it or nothing; tell whether that worked."""
    part = package.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(made, part)
        os.replace(part, package)
    except OSError as error:
        part.unlink(missing_ok=True)
        _log.warning("a compiled graph is not kept for the next run: %s", error)
        return False
    return True


_libraries: dict[Path, ctypes.CDLL] = {}
"""Loaded ones, which stay in memory: a run that is restarted at checkpoints asks again."""


def _load(package: Path) -> ctypes.CDLL | None:
    """Load a compiled graph; None where it is damaged or made for another system."""
    if package not in _libraries and (library := _extract(package)) is not None:
        _libraries[package] = library
    return _libraries.get(package)


def _extract(package: Path) -> ctypes.CDLL | None:
    try:
        with tempfile.TemporaryDirectory(prefix="ppo1_lightning_") as folder, ZipFile(package) as z:
            (name,) = (name for name in z.namelist() if name.endswith(".so"))
            return ctypes.CDLL(z.extract(name, folder))  # which may be deleted once it is loaded
    except Exception:  # zipfile has many for a damaged file
        return None


def _options() -> dict[str, Any]:
    """Return options, those that this PyTorch has."""
    from torch._inductor import config

    options = {
        "compile_wrapper_opt_level": "O1",  # halves the compile time
        "custom_ops_to_c_shims": winograd.C_FUNCTIONS,
    }
    known = {name: value for name, value in options.items() if hasattr(config.aot_inductor, name)}
    return {f"aot_inductor.{name}": value for name, value in known.items()}


def _key(graph: GraphModule, examples: Sequence[Tensor]) -> str:
    """Hash everything that the machine code depends on."""
    tensors = [*examples, *graph.state_dict().values()]
    layouts = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
    constants = [tensor.tolist() for tensor in graph.state_dict().values()]
    code = [module.code for module in graph.modules() if isinstance(module, GraphModule)]
    versions = (
        torch.__version__,
        torch.version.git_version,
        native.processor(),
        torch.get_num_threads(),
    )
    content = code, layouts, constants, versions, _options()
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]
