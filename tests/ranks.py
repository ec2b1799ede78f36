"""Runs a function as two or more devices do: one process each, joined by gloo."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn


def run_on_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Return ``function(rank, *args)`` of every rank, each called in a process of its own.

    There a Trainer with ``devices=ranks, strategy="ddp"`` joins the others; several Trainers one
    after the other are fine. ``function`` must be importable, its arguments and result picklable.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(_run, (ranks, port, folder, function, args), nprocs=ranks)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(ranks)]


def _run(
    rank: int, ranks: int, port: int, folder: str, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(function(rank, *args), Path(folder, f"{rank}.pt"))
