# pyright: reportMissingImports=false
"""Run a script of CleanRL's in its own environment, and keep what it learned from and what.

``python cleanrl_recorder.py OUTPUT.npz ITERATIONS SCRIPT.py [argument ...]``
"""

from __future__ import annotations

import runpy
import sys
from typing import Any, cast

import numpy as np
import torch
from torch.utils import tensorboard

FIELDS = ("obs", "actions", "rewards", "dones", "values", "next_value", "next_done")
ESTIMATES = ("advantages", "returns")

recorded: dict[str, np.ndarray] = {}
iteration = iterations = 0  # the present one, and how many are wanted


class Enough(SystemExit):
    """Ends the script."""


def keep(name: str, value: Any) -> None:
    recorded[f"{iteration}/{name}"] = np.array(value.detach().numpy(), copy=True)


def keep_parameters(agent: torch.nn.Module) -> None:
    """Those before the update of this iteration."""
    for name, parameter in agent.named_parameters():
        keep(f"parameters/{name}", parameter)


class Adam(torch.optim.Adam):
    """Made once the agent is: what the script has in its hands is kept from here on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        keep_parameters(sys._getframe(1).f_globals["agent"])


class Writer(tensorboard.SummaryWriter):
    """Hooks into the first row that a script writes after an update."""

    def add_scalar(self, *row: Any, **options: Any) -> None:
        global iteration
        if row[0] != "charts/learning_rate":
            return
        script = sys._getframe(1).f_globals
        for name in (*FIELDS, *ESTIMATES):
            keep(name, script[name])
        iteration += 1
        keep_parameters(script["agent"])
        if iteration == iterations:
            raise Enough


def shuffle(rows: np.ndarray, draw: Any = np.random.shuffle) -> None:
    draw(rows)
    passes = sum(name.startswith(f"{iteration}/order/") for name in recorded)
    recorded[f"{iteration}/order/{passes}"] = rows.copy()


def main() -> None:
    global iterations
    output, count, script, *options = sys.argv[1:]
    iterations, sys.argv = int(count), [script, *options]
    torch.optim.Adam, tensorboard.SummaryWriter, np.random.shuffle = Adam, Writer, shuffle
    try:
        runpy.run_path(script, run_name="__main__")
    except Enough:
        cast(Any, np.savez)(output, **recorded)  # of any names


if __name__ == "__main__":
    main()
