# pyright: reportMissingImports=false
"""SheepRL's PPO: ``python -m benchmarks.peers.sheeprl CASE`` in its virtual environment.

Its own command line, logging and checkpoints off. Its experiments for MuJoCo and Atari with the
sizes of the case; on Atari the Nature network on grey frames, as everybody else's.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from typing import Any

import sheeprl.algos.ppo.ppo as algorithm
import torch
from sheeprl.cli import run

from benchmarks.measure import Measurement, emit, parse_case

CASES = {
    "halfcheetah_8x256": [
        "exp=ppo_mujoco",
        "env.id=HalfCheetah-v4",
        "env.num_envs=8",
        "algo.rollout_steps=256",
    ],
    "halfcheetah_1x2048": ["exp=ppo_mujoco", "env.id=HalfCheetah-v4"],
    "cartpole": [
        "exp=ppo_mujoco",
        "env=gym",
        "env.id=CartPole-v1",
        "env.num_envs=8",
        "env.sync_env=true",
        "algo.rollout_steps=32",
        "algo.per_rank_batch_size=256",
        "algo.update_epochs=20",
    ],
    "atari": [
        "exp=ppo_atari",
        "env.num_envs=8",
        "env.grayscale=true",
        "algo.rollout_steps=128",
        "algo.update_epochs=4",
        "algo.actor.mlp_layers=0",
        "algo.critic.mlp_layers=0",
    ],
}
COMMON = [
    "algo.total_steps=1_000_000_000",
    "algo.run_test=false",
    "env.capture_video=false",
    "buffer.memmap=false",
    "fabric.accelerator=cpu",
    "fabric.devices=1",
    "metric.log_level=0",
    "checkpoint.every=0",
    "checkpoint.save_last=false",
]


class Enough(SystemExit):
    """Ends the run; Hydra lets it pass."""


def watch(measurement: Measurement, found: dict[str, Any]) -> None:
    """Hook into the two functions with which every iteration begins and ends."""
    anneal, train = algorithm.anneal, algorithm.train
    steps = 0

    def begin(*args: Any, **kwargs: Any) -> Any:
        measurement.begin()
        return anneal(*args, **kwargs)

    def train_and_tick(fabric: Any, agent: Any, optimizer: Any, data: Any, *rest: Any) -> Any:
        nonlocal steps
        outcome = train(fabric, agent, optimizer, data, *rest)
        steps += len(data["rewards"])
        if measurement.tick(steps):
            found["parameters"] = sum(p.numel() for p in agent.parameters())
            raise Enough
        return outcome

    algorithm.anneal, algorithm.train = begin, train_and_tick


def main() -> None:
    parser = parse_case(list(CASES), __doc__, by_steps=True)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("overrides", nargs="*", help="further arguments of its command line")
    arguments = parser.parse_intermixed_args()
    # One thread is faster for the MLPs; the CNN keeps PyTorch's default.
    threads = arguments.threads or (None if arguments.case == "atari" else 1)
    if threads:
        torch.set_num_threads(threads)
    measurement, found = Measurement(arguments.seconds, steps=arguments.steps), {}
    watch(measurement, found)
    with tempfile.TemporaryDirectory() as folder:
        folders = [f"hydra.run.dir={folder}", f"log_root={folder}"]
        sys.argv[1:] = [*CASES[arguments.case], *COMMON, *folders, *arguments.overrides]
        with suppress(Enough):
            run()
    versions = {"torch": torch.__version__, "sheeprl": metadata.version("sheeprl")}
    emit(measurement.result(**found, torch_threads=torch.get_num_threads(), versions=versions))


if __name__ == "__main__":
    main()
