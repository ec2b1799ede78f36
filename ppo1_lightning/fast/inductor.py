"""C++ as PyTorch's Inductor writes it for a graph, compiled with an entry of our own.

Inductor wraps what it writes in classes for packages of models, which take most of the compiler's
time and which nothing here asks for: of its function only what it calls is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppo1_lightning.fast import (
    native,
    processes,
    recurrence,
    space_to_depth,
    weight_gradient,
    winograd,
)

_OPERATORS = (winograd, space_to_depth, weight_gradient, recurrence)
_C_FUNCTIONS = {name: c for module in _OPERATORS for name, c in module.C_FUNCTIONS.items()}

_FUNCTION = re.compile(r"^void AOTInductorModel::run_impl\(.*?^}", re.DOTALL | re.MULTILINE)
_BEFORE_THE_MODEL = re.compile(r'^} // extern "C"$(.*?)^namespace', re.DOTALL | re.MULTILINE)

STEPS = Path(__file__).with_name("steps.h")

_HEADERS = f'#include <torch/csrc/inductor/cpp_prefix.h>\n#include "{STEPS}"\n'
"""What every graph begins with."""

_NOT_THERE = {
    "constants_->": "a constant of Inductor's",
    "proxy_executor_call_function": "an operator that Inductor can call from Python only",
}
"""What a function may ask a package's classes for, in its words and ours."""


def write_source(graph: GraphModule, examples: Sequence[Tensor]) -> str:
    """Return the C++ of a graph for CPU tensors like these: its kernels, and `run_graph`.

    The graph is one of `tracing.trace`: its nodes are described in one mode, which Inductor needs.

    Raises:
        RuntimeError: what it writes is not laid out as expected, as in a PyTorch to come.
    """
    from torch._inductor import aot_compile
    from torch._inductor.codecache import AotCodeCompiler

    written: list[tuple[str, str]] = []

    def keep(_: Any, steps: str, kernels: str, *__: Any, **___: Any) -> str:
        written.append((steps, kernels))
        return ""

    with warnings.catch_warnings(), patch.object(AotCodeCompiler, "compile", keep):
        warnings.simplefilter("ignore")  # of PyTorch's own code
        aot_compile(graph, tuple(examples), options=options())
    (steps, kernels), *_ = written
    return f"{kernels}\n{_own_entry(steps)}"


def options() -> dict[str, Any]:
    """Return Inductor's options for our graphs."""
    return {"aot_inductor.custom_ops_to_c_shims": _C_FUNCTIONS}


def _own_entry(model: str) -> str:
    """Return the function of Inductor's model, with what it calls declared before it."""
    function, declarations = _FUNCTION.search(model), _BEFORE_THE_MODEL.search(model)
    if function is None or declarations is None:
        raise RuntimeError(
            "this version of PyTorch writes compiled graphs in a way that is not known here; "
            "use compile=trace"
        )
    for asked_for, what in _NOT_THERE.items():
        if asked_for in function[0]:
            raise RuntimeError(f"the graph has {what}, which is not compiled; use compile=trace")
    ours = "".join(f"{declaration};\n" for [declaration] in _C_FUNCTIONS.values())
    return (
        f'#include "{STEPS}"\n{declarations[1]}'
        f'extern "C" {{\n{ours}}}\nnamespace torch::aot_inductor {{\n{function[0]}\n}}\n'
    )


def prepare_build(source: str, folder: Path) -> Callable[[], Path]:
    """Return what compiles C++ in a folder and returns the library; it may be called in a thread.

    What is called raises a RuntimeError where the compiler fails.
    """
    file = folder / "graph.cpp"
    file.write_text(source, encoding="utf-8")
    command, library = _command(file, folder)

    def build() -> Path:
        headers = precompiled_headers()
        _run([*command, *(["-include", str(headers)] if headers else [])])
        return library

    return build


def precompiled_headers() -> Path | None:
    """Return PyTorch's headers and ours as the compiler has read them; None where that fails.

    Reading them takes it five times as long as a graph does, so that is kept for those to come.
    """
    with contextlib.suppress(OSError, RuntimeError):
        cache = native.cache_folder()
        command, _ = _command(cache / "headers.h", cache, precompiling=True)
        own = cache / f"{headers_here()}{_hash(command)}"
        if not own.exists():
            with _reading_headers, native.one_at_a_time(cache / f"reading-{own.name}"):
                if not own.exists():  # by a thread or a process that we have waited for
                    _read_headers(own)
        return own / "headers.h" if own.exists() else None
    return None


_reading_headers = threading.Lock()
"""For file systems without locks."""


def headers_here() -> str:
    """Return how the name of headers begins that this PyTorch has read for this processor."""
    content = _HEADERS, STEPS.read_text(), torch.version.git_version, native.processor()
    return f"headers-{_hash(content)}-"


def _read_headers(own: Path) -> None:
    with tempfile.TemporaryDirectory(dir=own.parent, ignore_cleanup_errors=True) as name:
        header = Path(name) / "headers.h"
        header.write_text(_HEADERS, encoding="utf-8")
        _run(_command(header, header.parent, precompiling=True)[0])
        with contextlib.suppress(OSError):  # another process was faster
            header.parent.rename(own)  # which sees all of it or nothing


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _command(file: Path, folder: Path, *, precompiling: bool = False) -> tuple[list[str], Path]:
    """Return Inductor's command for a C++ file, and what it will have made."""
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    flags = CppTorchDeviceOptions(
        vec_isa=pick_vec_isa(), device_type="cpu", aot_mode=True, precompiling=precompiling
    )
    name = file.name if precompiling else file.stem
    builder = CppBuilder(name, [str(file)], BuildOption=flags, output_dir=str(folder))
    return shlex.split(builder.get_command_line()), Path(builder.get_target_file_path())


def _run(command: Sequence[str]) -> None:
    done = processes.run(command)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        told = next((line for line in lines if "error" in line), lines[-1])
        raise RuntimeError(f"{command[0]} failed: {told}")
