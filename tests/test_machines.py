"""The update equals the original's on other machines than this one, as far as this one can be them.

What this one is stands at the head of pytest's output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RECORDINGS = (
    "cnn_small_black",
    "cnn_small_discrete",
    "mlp_box",
    "trpo_box",
    "trpo_box_linesearch",
)

# PyTorch's kernels, the loops of its compiled graphs and its convolutions.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NO_VECTORS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
MACHINES = {
    "without AVX-512": AVX2 | {"TORCHINDUCTOR_CPP_MARCH": "x86-64-v3"},
    "of 2008": NO_VECTORS | {"TORCHINDUCTOR_CPP_MARCH": "x86-64-v2"},  # no fused multiply-add
    "any x86-64": NO_VECTORS | {"TORCHINDUCTOR_CPP_MARCH": "x86-64"},
}

REPLAY = """
import logging, sys
import torch
from golden_vectorized import find
from golden_replay import replay
from test_golden import DIRECTORIES, PATHS, check_parameters, check_step
from ppo1_lightning import fast
from pathlib import Path
from ppo1_lightning.fast import native, winograd

logging.basicConfig(level="WARNING")
torch.set_num_threads(1)
fast.worth_compiling = lambda *_: True  # with compile="auto"
names, paths = sys.argv[1].split(), sys.argv[2:]
for recording in [r for folder in DIRECTORIES for r in find(folder)]:
    for path in paths if recording.name in names else []:
        for i, ours in enumerate(replay(recording, compile=(PATHS | {"auto": "auto"})[path])):
            check_parameters(recording, i, ours)
            if recording.algorithm == "trpo":
                check_step(recording, i, ours["intermediates"])
        print(recording.name, ours["path"], native.has_operators(winograd.SOURCE))
"""


def replay(folder: Path, variables: dict[str, str], *paths: str) -> tuple[list[str], str]:
    """Replay recordings in a process of its own; return a line for each, and what it warned of."""
    places = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(places), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, " ".join(RECORDINGS), *paths],
        env=os.environ | own | variables,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(RECORDINGS)], done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", MACHINES)
def test_on_an_older_processor(machine: str, tmp_path: Path) -> None:
    lines, _ = replay(tmp_path, MACHINES[machine], "eager", "traced", "compiled")
    paths = ("eager", "traced", "compiled")
    assert lines == [f"{name} {path} True" for name in RECORDINGS for path in paths]


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    lines, warned = replay(tmp_path, {"CXX": "/nowhere/c++"}, "eager", "traced", "auto")
    paths = ("eager", "traced", "traced")
    assert lines == [f"{name} {path} False" for name in RECORDINGS for path in paths]
    assert warned.count("update: compiling failed: ") == len(RECORDINGS)
