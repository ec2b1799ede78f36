"""What the sum of gradients over ranks costs in a minibatch step, on this machine with gloo.

``python -m benchmarks.all_reduce [--ranks 2] [--steps 200] [--compile true]``

It measures steps of `paths.choose_path` on random minibatches, as training takes them, and
projects the parts to more ranks (`project`), which is arithmetic, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gymnasium.spaces import Box, Discrete, Space
from rich.table import Table
from torch.multiprocessing.spawn import spawn

from benchmarks.processes import ROOT, machine, report, write_json
from ppo1_lightning import PPO, CnnPolicy, MlpPolicy
from ppo1_lightning.algorithms.paths import choose_path
from ppo1_lightning.algorithms.update import Update
from ppo1_lightning.rollouts.segment import Minibatch

WARMUP = 10
NODE_RANKS = 8  # of the projection

NETWORKS: dict[str, tuple[Callable[..., Any], Space[Any], Space[Any], int]] = {
    "MLP 2x64": (MlpPolicy, Box(-np.inf, np.inf, (17,)), Box(-1, 1, (6,)), 64),
    "Nature CNN": (
        partial(CnnPolicy, size="large"),
        Box(0, 255, (4, 84, 84), np.uint8),
        Discrete(6),
        256,
    ),
}
"""Policy, spaces and rows of a minibatch, all ranks together: HalfCheetah's and Pong's."""


# ---------------------------------------------------------------- measured


def measure(rank: int, ranks: int, port: int, compile: str, steps: int, file: str) -> None:
    """Measure every network as one of the ranks; rank zero writes the figures."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    rows = {name: _measure_network(*network, compile, steps) for name, network in NETWORKS.items()}
    if rank == 0:
        Path(file).write_text(json.dumps(rows))
    dist.destroy_process_group()


def _measure_network(
    policy: Callable[..., Any],
    observation_space: Space[Any],
    action_space: Space[Any],
    minibatch_size: int,
    compile: str,
    steps: int,
) -> dict[str, float]:
    ppo = PPO(policy, observation_space=observation_space, action_space=action_space)
    ppo.configure_model()
    share = minibatch_size // dist.get_world_size()
    minibatch = _minibatch(ppo, observation_space, action_space, share)
    update, _ = choose_path(
        ppo,
        ppo.loss,
        ppo.configure_optimizers(),
        max_grad_norm=None,
        compile={"true": True, "false": False}.get(compile, compile),
        optimizer_steps=None,
        example=minibatch,
    )
    minibatches = Minibatch(*(field[None] for field in minibatch))
    size = sum(p.numel() for p in ppo.policy.parameters())
    step, waiting = _time_steps(update, minibatches, steps)
    return {
        "parameters": size,
        "rows_per_rank": share,
        "step_ms": step,
        "all_reduce_in_step_ms": waiting,
        "all_reduce_alone_ms": _time_all_reduce(size, steps),
        "all_reduce_one_number_ms": _time_all_reduce(1, steps),
    }


def _minibatch(
    ppo: PPO, observation_space: Space[Any], action_space: Space[Any], rows: int
) -> Minibatch:
    spaces = (observation_space, action_space)
    observations, actions = (
        torch.from_numpy(np.stack([space.sample() for _ in range(rows)])) for space in spaces
    )
    with torch.no_grad():
        dist_params, values, _ = ppo.policy(observations, None)
    return Minibatch(
        observations=observations,
        actions=actions,
        advantages=torch.randn(rows),
        returns=torch.randn(rows),
        old_values=values,
        old_dist_params=dist_params,
        old_log_probs=ppo.distribution.log_prob(dist_params, actions),
        weights=torch.full((rows,), 1 / (rows * dist.get_world_size())),
        starts=torch.zeros(rows, dtype=torch.bool),
        state=torch.zeros(rows, 0),
    )


def _time_steps(update: Update, minibatches: Minibatch, steps: int) -> tuple[float, float]:
    """Return milliseconds of a step and of its all-reduce, which waits for the slower rank."""
    all_reduce, waits = dist.all_reduce, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = all_reduce(*args, **kwargs)
        waits.append(time.perf_counter() - started)
        return result

    times = []
    dist.all_reduce = timed
    try:
        for _ in range(WARMUP + steps):
            started = time.perf_counter()
            update(minibatches)
            times.append(time.perf_counter() - started)
    finally:
        dist.all_reduce = all_reduce
    return _median_ms(times), _median_ms(waits)


def _time_all_reduce(size: int, steps: int) -> float:
    """Return milliseconds of an all-reduce of float32 numbers on which no rank has to wait."""
    tensor, times = torch.zeros(size), []
    for _ in range(WARMUP + steps):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - started)
    return _median_ms(times)


def _median_ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds[WARMUP:])


# ---------------------------------------------------------------- projected


def project(row: dict[str, float], nodes: int, latency_ms: float, gigabytes: float) -> float:
    """Return the projected efficiency of ``nodes`` machines with 8 ranks each.

    Every rank keeps the rows that it has in the measurement (minibatch and environments grow with
    the ranks). Efficiency is compute / (compute + all-reduce), where compute is the measured step
    without its all-reduce. The all-reduce is a ring of R ranks on each machine, then one of the
    machines: each 2 (R - 1) messages one after the other, and 2 (R - 1) / R times the gradient's
    bytes. On a machine, latency and seconds a byte come from the measured all-reduces of two ranks.

    Args:
        row: the figures of a network, of 2 ranks.
        nodes: machines.
        latency_ms: of a message between two machines.
        gigabytes: per second, between two machines.
    """
    message = row["all_reduce_one_number_ms"] / 2
    transfer = max(row["all_reduce_alone_ms"] - row["all_reduce_one_number_ms"], 0.0)
    between = 4 * row["parameters"] / (gigabytes * 1e9) * 1e3
    compute = row["step_ms"] - row["all_reduce_in_step_ms"]
    cost = _ring(NODE_RANKS, message, transfer) + _ring(nodes, latency_ms, between)
    return compute / (compute + cost)


def _ring(ranks: int, message: float, transfer: float) -> float:
    return 2 * (ranks - 1) * message + 2 * (ranks - 1) / ranks * transfer


# ---------------------------------------------------------------- shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", choices=("true", "trace", "false"), default="true")
    parser.add_argument("--latency-us", type=float, default=20.0, help="between machines, assumed")
    parser.add_argument("--gigabytes", type=float, default=12.5, help="per second, likewise")
    default = ROOT / "benchmarks" / "results" / "all_reduce.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    host = machine()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        arguments = (options.ranks, port, options.compile, options.steps, str(file))
        spawn(measure, arguments, nprocs=options.ranks)
        rows = json.loads(file.read_text())
    _show(rows, options)
    write_json(
        options.json,
        {"machine": host, "arguments": {**vars(options), "json": str(options.json)}, "rows": rows},
    )


def _show(rows: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    measured = Table("measured", "parameters", "rows a rank", "step ms", "all-reduce ms", "share")
    projected = Table("projected", f"1 x {NODE_RANKS}", f"{NODE_RANKS} x {NODE_RANKS}")
    for name, row in rows.items():
        waiting, step = row["all_reduce_in_step_ms"], row["step_ms"]
        measured.add_row(
            name,
            f"{row['parameters']:,.0f}",
            f"{row['rows_per_rank']:.0f}",
            f"{step:.2f}",
            f"{waiting:.2f} ({row['all_reduce_alone_ms']:.2f} alone)",
            f"{waiting / step:.0%}",
        )
        link = (options.latency_us / 1000, options.gigabytes)
        efficiencies = (project(row, nodes, *link) for nodes in (1, NODE_RANKS))
        projected.add_row(name, *(f"{efficiency:.0%}" for efficiency in efficiencies))
    report.print(measured)
    if options.ranks == 2:  # what the projection's parts are taken from
        report.print(projected)


if __name__ == "__main__":
    main()
