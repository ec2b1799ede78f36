"""Jobs of several processes, alone and in sweeps: real command lines, real ranks, gloo."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from kills import is_running, wait_until
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.commands.ranks import RankError, run_ranks

pytestmark = pytest.mark.heavy

TINY = ["debug=default", "trainer.accelerator=cpu", "logger=csv", "compile=false"]
OWN = ["env=gymnasium", "trainer.devices=2"]


@pytest.fixture(autouse=True)
def _outside_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier test has run in this process."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command line in an empty folder."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "ppo1_lightning", *words, *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and stderr."""
    _, errors = process.communicate(timeout=200)
    return process.returncode, errors


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_sweep_over_devices_and_seeds(tmp_path: Path) -> None:
    words = ["-m", "trainer.devices=1,2", "seed=1,2", "hydra.sweep.dir=sweep", "env=cartpole"]
    status, errors = finish(start(tmp_path, *words))
    assert status == 0, errors
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    produced = {file.name for file in (tmp_path / "sweep").iterdir()}
    assert produced == {*"0123", "multirun.yaml", "report.html"}
    one_1, one_2, two_1, two_2 = (rows(tmp_path / "sweep" / str(job)) for job in range(4))
    assert one_1 != one_2
    for one, two in ((one_1, two_1), (one_2, two_2)):
        assert len(one) == len(two) == 3
        for ours, theirs in zip(one, two, strict=True):
            for name, value in ours.items():
                assert float(value) == pytest.approx(float(theirs[name]), abs=1e-4, nan_ok=True)


@pytest.mark.slow
def test_evaluation_on_two_devices_is_that_on_one(tmp_path: Path) -> None:
    assert finish(start(tmp_path, "env=cartpole", "hydra.run.dir=run"))[0] == 0
    results = []
    for devices in (1, 2):
        words = ["run=run", "episodes=4", "num_envs=2", f"trainer.devices={devices}"]
        command = [sys.executable, "-m", "ppo1_lightning", "evaluate", *words]
        subprocess.run([*command, "trainer.accelerator=cpu"], check=True, cwd=tmp_path)
        result = tmp_path / "run/checkpoints/last.evaluation.json"
        results.append(result.read_text())
        result.unlink()
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (2, ["env=invertedpendulum", "algo=ppo1_mujoco", "num_envs=1"]),
        (2, ["env=hopper", "algo=ppo2", "num_envs=1"]),
        (2, ["env=hopper", "algo=trpo_mujoco", "num_envs=1"]),
        (3, ["env=cartpole", "num_envs=8"]),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_presets_that_devices_share(devices: int, words: list[str], tmp_path: Path) -> None:
    """Workers, and environments, that do not divide: the run is that of one device."""
    runs = []
    for n in (1, devices):
        sizes = ["num_steps=512", "algo.minibatch_size=64", "total_iterations=2"]
        folder = ["hydra.run.dir=run", f"trainer.devices={n}"]
        (tmp_path / str(n)).mkdir()
        status, errors = finish(start(tmp_path / str(n), *words, *sizes, *folder))
        assert status == 0, errors
        runs.append(rows(tmp_path / str(n) / "run"))
    one, several = runs
    assert len(one) == len(several) == 2
    for ours, theirs in zip(one, several, strict=True):
        for name, value in ours.items():
            expected = pytest.approx(float(theirs[name]), abs=1e-3, rel=1e-3, nan_ok=True)
            assert float(value) == expected, name


@pytest.mark.slow
def test_failing_jobs_leave_the_others_alone(tmp_path: Path) -> None:
    ids = ",".join(f"launched_envs:{name}-v0" for name in ("Killed", "Crashing", "Fine"))
    words = ["-m", *OWN, f"env.id={ids}", "hydra.sweep.dir=sweep"]
    status, errors = finish(start(tmp_path, *words))
    assert status == 128 + signal.SIGKILL  # of the first that failed
    assert errors.count("error: rank 1 was ended by SIGKILL") == 1
    assert errors.count("KeyError: 'a bug'") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    assert len(rows(tmp_path / "sweep" / "2")) == 3
    assert (tmp_path / "sweep" / "2" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_ranks_save_and_end_with_their_launcher(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    """A signal to the launcher alone; a job of a sweep takes the rest of the sweep with it."""
    words = ["-m", *OWN, "env.id=launched_envs:Slow-v0", "seed=1,2", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *words, "total_iterations=1000000")
    files = [tmp_path / "pid_0", tmp_path / "pid_1"]
    begun = tmp_path / "sweep/0/csv/metrics.csv"  # before, there is nothing to save
    try:
        wait_until(lambda: all(file.exists() and file.read_text() for file in (*files, begun)))
        process.send_signal(number)
        assert finish(process)[0] == status
        wait_until(lambda: not any(is_running(int(file.read_text())) for file in files))
    finally:
        process.kill()
    assert (tmp_path / "sweep/0/checkpoints/last.ckpt").exists()
    assert not (tmp_path / "sweep/1").exists()


# -------------------------------------------------------------------- the launcher alone


def describe(config: DictConfig) -> dict[str, object]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    variables = {name: os.environ[name] for name in names}
    session = os.getsid(0) == os.getpid()
    return {**variables, "rank": rank_zero_only.rank, "config": config.a.b, "session": session}  # type: ignore[attr-defined]


def end_second(config: DictConfig) -> None:
    """Let rank one end as the config says once rank zero waits to be told so."""
    waits = Path(config.folder, "waits")
    try:
        if os.environ["RANK"] == "0":
            waits.touch()
            time.sleep(100)
        while not waits.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL) if config.status < 0 else sys.exit(config.status)
    except SystemExit as end:
        if os.environ["RANK"] == "0":
            Path(config.folder, "told").write_text(str(end.code))
        raise


def fail_slowly(config: DictConfig) -> None:
    """Fail on both ranks, on rank zero with something left to do that takes longer."""
    try:
        raise ValueError("on both")
    except ValueError:
        time.sleep(3 * (os.environ["RANK"] == "0"))
        Path(config.folder, f"told_{os.environ['RANK']}").touch()
        sys.exit(2)


def test_what_rank_zero_is_told_and_returns() -> None:
    config = OmegaConf.create({"a": {"b": "${c}"}, "c": 3})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert run_ranks(describe, config, 2) == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "rank": 0,
        "config": 3,
        "session": True,
    }
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        pytest.param(7, "", 7, id="exit"),
        pytest.param(
            *(-9, "rank 1 was ended by SIGKILL", 137), id="killed", marks=pytest.mark.slow
        ),
    ],
)
def test_a_rank_that_fails_ends_the_other(
    status: int, message: str, expected: int, tmp_path: Path
) -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(end_second, DictConfig({"status": status, "folder": str(tmp_path)}), 2)
    assert (str(caught.value), caught.value.status) == (message, expected)
    assert (tmp_path / "told").read_text() == str(128 + signal.SIGTERM)


@pytest.mark.slow
def test_a_rank_that_fails_too_is_not_interrupted(tmp_path: Path) -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(fail_slowly, DictConfig({"folder": str(tmp_path)}), 2)
    assert caught.value.status == 2
    assert {file.name for file in tmp_path.iterdir()} == {"told_0", "told_1"}


def stay(config: DictConfig) -> None:
    """Take no notice of any signal, as in a collective that waits for another rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = Path(config.folder, os.environ["RANK"])
    file.with_suffix(".tmp").write_text(str(os.getpid()))
    file.with_suffix(".tmp").rename(file)
    time.sleep(300)


@pytest.mark.slow
def test_ranks_that_hear_no_signal_end_with_their_launcher(tmp_path: Path) -> None:
    program = "import sys, test_ranks as t; t.run_ranks(t.stay, t.DictConfig({'folder': '.'}), 2)"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1",
        },
    )
    files = [tmp_path / "0", tmp_path / "1"]
    try:
        wait_until(lambda: all(file.exists() for file in files))
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(is_running(int(file.read_text())) for file in files), seconds=30)
