"""How PyTorch computes while a run trains: threads and precision, put back afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ppo1_lightning.policies import MlpPolicy

log = logging.getLogger("ppo1_lightning")


@contextmanager
def few_threads(policy: nn.Module, *, speak: bool) -> Iterator[None]:
    """Use one intra-op thread for an MLP: splitting such small products costs more than it gains.

    OMP_NUM_THREADS, where the user has set it, decides instead.
    """
    if type(policy) is not MlpPolicy or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    if speak:
        log.info("PyTorch computes on 1 CPU thread, for a small network (OMP_NUM_THREADS decides)")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 products as `torch.set_float32_matmul_precision` says, convolutions too.

    Of those PyTorch takes another number's word by default: on a GPU they are TF32.
    """
    cudnn: Any = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
