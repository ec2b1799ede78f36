"""Compiles graphs ahead of time to machine code, and keeps it on disk for the next run.

`torch.compile` calls its kernels from Python. A graph that is compiled ahead of time
(`AOTInductor`) is one call into C++, which for small networks is twice as fast, and three times
where it alternates with other work, as acting does with simulating.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


def compile_ahead(graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Return a function that computes what ``graph`` does, for CPU tensors like ``examples``.

    It looks at neither shapes nor dtypes: other tensors are undefined behaviour.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    package = cache_folder() / f"{_key(graph, examples)}.pt2"
    if not package.exists():
        with tempfile.TemporaryDirectory(dir=package.parent) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own code
            program = torch.export.export(graph, tuple(examples))
            made = aoti_compile_and_package(
                program, package_path=str(Path(folder) / "made.pt2"), inductor_configs=_options()
            )
            os.replace(made, package)  # so that another process sees all of it or nothing
    run = aoti_load_package(str(package), run_single_threaded=True).loader.run
    return lambda *tensors: run(list(tensors))


def cache_folder() -> Path:
    """Return the folder of compiled graphs, made if need be.

    ``$XDG_CACHE_HOME/ppo1_lightning``, by default below ``~/.cache``; only its owner may write to
    it, since code is loaded from there.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "ppo1_lightning"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


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
    versions = torch.__version__, torch.version.git_version, _processor(), torch.get_num_threads()
    content = graph.code, layouts, constants, versions, _options()
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what tells the instructions that this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
