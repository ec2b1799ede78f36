"""Two processes of which one gets signals: checkpoints, progress and metrics of the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.heavy

PROGRAM = Path(__file__).parents[1] / "run_standin.py"  # beside what it imports


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return folder and output of a run: SIGTERM in iteration 2, resumed, Ctrl-C in iteration 4."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, PROGRAM, folder, "2", "100"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 130, process.stderr
    return folder, process.stdout


def test_ranks_stop_in_the_same_iteration_and_save(run: tuple[Path, str]) -> None:
    checkpoint = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == checkpoint["counters"]["iterations"] == 4
    # SIGTERM: rank zero's status tells; Lightning would take any other for a failure
    assert [run[1].count(f"terminated with {status}") for status in (143, 0)] == [1, 1]


def test_ranks_agree_on_the_best(run: tuple[Path, str]) -> None:
    checkpoint = torch.load(run[0] / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["callbacks"] == {"RunCheckpoint": {"best_score": 9.0}}  # seen by rank 1


def test_only_rank_zero_writes(run: tuple[Path, str]) -> None:
    folder, output = run
    assert len((folder / "csv" / "metrics.csv").read_text().splitlines()) == 1 + 4
    assert [output.count(f"| {steps} steps |") for steps in (10, 20, 30, 40)] == [1, 2, 1, 2]
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "csv/metrics.csv",
    ]
