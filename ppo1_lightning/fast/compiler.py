"""Compiles graphs ahead of time to machine code, and keeps it on disk for the next run.

`torch.compile` calls its kernels from Python. A graph that is compiled ahead of time
(`AOTInductor`) is one call into C++, which for small networks is twice as fast, and three times
where it alternates with other work, as acting does with simulating.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from ppo1_lightning import system
from ppo1_lightning.fast import inductor, native

_log = logging.getLogger(__name__)

Run = Callable[[int, int], None]
"""Calls a graph for rows ``first`` to ``end - 1`` of the tensors that it is bound to."""

Compiled = bool | Literal["kept"]
"""Whether graphs are compiled; "kept": those that an earlier run has left on this machine are."""


def read_headers_ahead() -> None:
    """Begin with what the first compilation on a machine waits for longest, where none has been
    yet: the compiler reads the headers of all graphs, while Python traces and rewrites them."""
    if not any(native.cache_folder().glob(f"{inductor.headers_here()}*")):
        _compilers().submit(inductor.precompiled_headers)


def compile_ahead(
    graph: GraphModule, examples: Sequence[Tensor], *, if_kept: bool = False
) -> CompiledGraph | None:
    """Start to compile a graph that writes its results into its arguments, for CPU tensors like
    these; what it is compiled to is waited for when it runs.

    With ``if_kept`` nothing is compiled: None where no earlier run has left it.
    """
    constants = _constants_as_inputs(graph)
    tensors = [*examples, *constants]
    package = _package(graph, tensors)
    library = _load(package)
    if library is None and if_kept:
        return None
    with contextlib.ExitStack() as stack:
        if library is None:
            stack.enter_context(native.one_at_a_time(package))  # other ranks wait for us
            library = _load(package)
        if library is not None:
            return CompiledGraph(lambda: library, constants)
        build = _prepare(graph, tensors, package)
        until_built = stack.pop_all()
    return CompiledGraph(_compilers().submit(_and_close, build, until_built).result, constants)


def is_kept(graph: GraphModule, examples: Sequence[Tensor]) -> bool:
    """Whether an earlier run has compiled this graph for tensors like these."""
    return _package(graph, [*examples, *_constants_as_inputs(graph)]).exists()


def _package(graph: GraphModule, tensors: Sequence[Tensor]) -> Path:
    return native.cache_folder() / f"{_key(graph, tensors)}.zip"


def _constants_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into further inputs of it; return them."""
    after = next(node for node in reversed(graph.graph.nodes) if node.op == "placeholder")
    constants = []
    for node in graph.graph.find_nodes(op="get_attr"):
        constants.append(getattr(graph, str(node.target)).contiguous())
        with graph.graph.inserting_after(after):
            after = graph.graph.placeholder(f"constant_{len(constants)}")
        after.meta = node.meta
        node.replace_all_uses_with(after)
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    """Return threads that wait for compilers, while Python goes on with the next graph."""
    return ThreadPoolExecutor(len(system.cores()), "compiler")


def _and_close(build: Callable[[], ctypes.CDLL], stack: contextlib.ExitStack) -> ctypes.CDLL:
    with stack:
        return build()


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

    def __init__(self, library: Callable[[], ctypes.CDLL], constants: Sequence[Tensor]) -> None:
        self._library, self._constants = library, constants
        self._table: NDArray[Any] | None = None  # of the first tensors
        self._kept_alive: list[NDArray[Any]] = []

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
        """Return the graph for ``fixed`` and one row each of ``rows``, in this order."""
        constants = self._constants
        if self._table is None:
            first = [*fixed, *(t[0] for t in rows), *constants]
            self._table = np.stack([*map(self._describe, first)])
        table, tensors = self._table.copy(), (*fixed, *rows, *constants)
        table["data"] = [tensor.data_ptr() for tensor in tensors]
        steps = [t.stride(0) * t.element_size() for t in rows]
        table["row_bytes"] = [0] * len(fixed) + steps + [0] * len(constants)
        return functools.partial(self._run, (table.ctypes.data, len(table)), (table, tensors))

    def _run(self, table: tuple[int, int], kept_alive: Any, first: int, end: int) -> None:
        if _loop()(*self._functions, *table, first, end):
            raise RuntimeError("a compiled graph failed; what it says is above")

    @functools.cached_property
    def _functions(self) -> tuple[_Pointer, _Pointer]:
        """What makes a tensor and what runs the graph, once it is compiled."""
        create_tensor = _torch().aoti_torch_create_tensor_from_blob
        run = self._library().run_graph
        return ctypes.cast(create_tensor, _Pointer), ctypes.cast(run, _Pointer)

    def _describe(self, tensor: Tensor) -> NDArray[Any]:
        sizes, strides = (np.array(part, np.int64) for part in (tensor.shape, tensor.stride()))
        self._kept_alive += [sizes, strides]
        number = getattr(_torch(), f"aoti_torch_dtype_{str(tensor.dtype).removeprefix('torch.')}")
        row = 0, 0, tensor.ndim, sizes.ctypes.data, strides.ctypes.data, number()
        return np.array(row, _TENSOR_ROWS)


@functools.cache
def _torch() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@functools.cache
def _loop() -> Callable[..., int]:
    """Return ``run_rows`` of ``loop.cpp``."""
    function = native.load(Path(__file__).with_name("loop.cpp"), "-O2").run_rows
    function.argtypes = [*[_Pointer] * 3, *[ctypes.c_int64] * 3]
    function.restype = ctypes.c_int32
    return function


def _prepare(
    graph: GraphModule, tensors: Sequence[Tensor], package: Path
) -> Callable[[], ctypes.CDLL]:
    """Return what compiles a graph and, where the disk has room, keeps it as ``package``."""
    folder = tempfile.TemporaryDirectory(prefix="ppo1_lightning_")
    build = inductor.prepare_build(inductor.write_source(graph, tensors), Path(folder.name))

    def compiled() -> ctypes.CDLL:
        with folder:
            made = build()
            library = _load(package) if _kept(made, package) else ctypes.CDLL(str(made))
        if library is None:
            raise RuntimeError(f"the compiled graph {package} cannot be loaded")
        return library

    return compiled


def _kept(made: Path, package: Path) -> bool:
    """Pack a file so that another process sees all of it or nothing; tell whether that worked."""
    part = package.with_suffix(f".{os.getpid()}")
    try:
        with ZipFile(part, "w") as z:  # which tells when it is damaged
            z.write(made, made.name)
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


def _key(graph: GraphModule, tensors: Sequence[Tensor]) -> str:
    """Hash everything that the machine code depends on."""
    layouts = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
    code = [module.code for module in graph.modules() if isinstance(module, GraphModule)]
    versions = (
        torch.__version__,
        torch.version.git_version,
        native.processor(),
        torch.get_num_threads(),
    )
    entry = inductor.STEPS.read_text(encoding="utf-8")
    content = code, layouts, versions, entry, inductor.options()
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]
