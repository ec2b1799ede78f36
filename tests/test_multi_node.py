"""Several machines, played by one: torchrun agents, and processes as SLURM starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo1_lightning import __main__ as command_line

RUN = ["ppo1_lightning", "debug=default", "env=cartpole", "trainer.accelerator=cpu", "logger=csv"]
RUN += ["compile=false"]
DIR = "hydra.run.dir=run"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(node: int, port: str, *words: str) -> list[str]:
    """Return the command of one of two machines."""
    options = [f"--node_rank={node}", f"--master_port={port}", "--master_addr=127.0.0.1"]
    return ["torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *options, "-m", *words]


def srun(node: int, port: str) -> dict[str, str]:
    """Return what srun tells the one process of the second or first of two machines."""
    variables = {"PROCID": node, "NODEID": node, "LOCALID": 0}
    variables |= {"NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1, "JOB_NAME": "run", "JOB_ID": 1}
    return {f"SLURM_{k}": str(v) for k, v in variables.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def run_together(commands: list[list[str]], environments: list[Any], folder: Path) -> list[Any]:
    """Run modules at the same time; return exit status and stderr of each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    return [(p.returncode, error) for p, error in zip(processes, errors, strict=True)]


def parameters(run: Path) -> dict[str, Any]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    ((status, errors),) = run_together([[*RUN, DIR]], [{}], folder)
    assert status == 0, errors
    return parameters(folder / "run")


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("srun", marks=pytest.mark.slow)])
def test_two_nodes_are_one_run(launcher: str, one_device: dict[str, Any], tmp_path: Path) -> None:
    port, words = free_port(), [*RUN, "trainer=multi_node", DIR]
    if launcher == "torchrun":
        commands = [torchrun(node, port, *words) for node in range(2)]
        environments: list[Any] = [{}, {}]
    else:
        commands = [words, words]
        environments = [srun(node, port) for node in range(2)]
    for status, errors in run_together(commands, environments, tmp_path):
        assert status == 0, errors
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert "devices                2 " in (tmp_path / "run" / "plan.txt").read_text()
    assert len((tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()) == 4
    torch.testing.assert_close(parameters(tmp_path / "run"), one_device, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["trainer=multi_node"], "hydra.run.dir=outputs/run_1"),
        (["trainer=multi_node", "-m"], "-m cannot run below torchrun"),
        ([DIR], "trainer=multi_node takes both"),
    ],
    ids=["folder by time", "sweep", "one device"],
)
def test_several_processes_that_cannot_work_together(
    words: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Rank zero says why, and there is no folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*RUN, *words])
    for name, value in srun(0, "1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    (line,) = (line for line in lines if line.startswith("error: "))
    assert fragment in line
    assert not list(tmp_path.rglob("*.ckpt"))
