"""The GPU benchmark: ``python -m benchmarks.gpu``, Atari beside EnvPool alone and other scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.processes import console, machine, measure, python, report, write_json

TRACED = "compile=trace"
TF32, BF16 = "float32_matmul_precision=high", "trainer.precision=bf16-mixed"
TWO_POOLS = "env.num_pools=2"
LARGE = ["num_envs=64", "algo.minibatch_size=2048"]
OURS: dict[str, list[str]] = {
    "8 x 128, eager": ["compile=false"],
    "8 x 128": [TRACED],
    "8 x 128, TF32": [TRACED, TF32],
    "8 x 128, TF32, two pools": [TRACED, TF32, TWO_POOLS],
    "64 x 128": [*LARGE, TRACED],
    "64 x 128, TF32, two pools": [*LARGE, TRACED, TF32, TWO_POOLS],
    "64 x 128, bf16, two pools": [*LARGE, TRACED, BF16, TWO_POOLS],
}
"""Arguments of each row; 8 environments x 128 steps, 4 epochs of 4 minibatches, as the others."""

OTHERS: dict[str, list[str]] = {
    "cleanrl": ["--env-id=Pong-v5", "--num-envs=8", "--total-timesteps=1000000000"],
    "leanrl": ["--env-id=Pong-v5", "--cudagraphs"],
}
"""Arguments of scripts, see `peers.atari_script`; LeanRL's ``--compile`` makes it no faster."""


def commands(accelerator: str, seconds: float, scripts: dict[str, Path]) -> Iterator[Any]:
    """Yield the name and the command of each row."""
    common = [f"--seconds={seconds}", f"trainer.accelerator={accelerator}"]
    for envs, words in ((8, []), (64, LARGE)):
        alone = python("benchmarks.simulator", "atari", *words, *common)
        yield f"EnvPool alone, {envs} environments", alone
        for name, ours in OURS.items():
            if name.startswith(f"{envs} "):
                yield name, python("benchmarks.ours", "atari", *ours, *common)
        for peer, file in scripts.items() if envs == 8 else ():
            options = [f"--seconds={seconds}", str(file), *OTHERS[peer]]
            yield f"{peer}, 8 x 128", python("benchmarks.peers.atari_script", *options)


def card(accelerator: str) -> str:
    """Return the name of the card."""
    import torch

    return torch.cuda.get_device_name() if accelerator == "gpu" else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="gpu", help="cpu: to try it out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of steady state, a row")
    parser.add_argument("--json", type=Path)
    for peer in OTHERS:
        parser.add_argument(f"--{peer}", type=Path, metavar="FILE", help="its script, to compare")
    arguments = parser.parse_args()
    scripts = {p: file.resolve() for p in OTHERS if (file := getattr(arguments, p))}
    results: dict[str, Any] = {
        "machine": machine() | {"card": card(arguments.accelerator)},
        "command": sys.argv[1:],
        "rows": {},
    }
    alone = float("nan")
    for name, command in commands(arguments.accelerator, arguments.seconds, scripts):
        console.print(name, highlight=False)
        result = results["rows"][name] = measure(command)
        write_json(arguments.json, results)
        if speed := result.get("steps_per_second"):
            alone = speed if name.startswith("EnvPool") else alone
            share = f"{speed / alone:6.0%} of EnvPool alone"
            report.print(f"{name:32} {speed:10,.0f} steps/s {share}", highlight=False)


if __name__ == "__main__":
    main()
