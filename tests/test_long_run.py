"""Nothing adds up over a long run: memory, file descriptors and threads stay what they were."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from ppo1_lightning import PPO, EnvironmentSpec, MlpPolicy, RolloutDataModule
from ppo1_lightning.callbacks import Progress, RunCheckpoint
from ppo1_lightning.runs.csv_logger import CSVLogger
from ppo1_lightning.simulators import make_simulator

pytestmark = pytest.mark.heavy

MIB = 2**20
FEWEST_ITERATIONS, MOST_ITERATIONS = 40, 1_000_000


def resources() -> tuple[int, int, int]:
    """Return (resident bytes, open files, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd")) - 1  # the one that lists them
    return pages * os.sysconf("SC_PAGE_SIZE"), files, len(os.listdir("/proc/self/task"))


def growth(amounts: NDArray[np.float64]) -> float:
    """Return by how much a noisy amount rose: the last quarter's median less the first one's."""
    quarter = len(amounts) // 4
    return float(np.median(amounts[-quarter:]) - np.median(amounts[:quarter]))


class Watch(Callback):
    """Notes resources after every iteration, and ends the run after ``seconds`` at least."""

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.warm_up, self.seconds = warm_up, seconds
        # All of its memory is taken now: a list would grow with the run that it watches.
        self._rows = np.full((MOST_ITERATIONS, 3), -1, np.int64)
        self._count = 0
        self._started = 0.0

    @property
    def seen(self) -> NDArray[np.int64]:
        """Return the resources after each iteration since the warm-up, ``[iterations, 3]``."""
        return self._rows[: self._count]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed > self.warm_up:
            self._rows[self._count] = resources()
            self._count += 1
        enough = elapsed > self.warm_up + self.seconds and self._count >= FEWEST_ITERATIONS
        trainer.should_stop = trainer.should_stop or enough


def watch_a_run(folder: Path, warm_up: float, seconds: float) -> NDArray[np.float64]:
    """Train on CartPole with every logger and callback; return ``[iterations, 3]``."""
    watch = Watch(warm_up, seconds)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[RunCheckpoint(folder, every_n_iterations=5), Progress(), watch],
        logger=[CSVLogger(folder), TensorBoardLogger(folder)],
        log_every_n_steps=1,
    )
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=16, total_iterations=10**7)
    trainer.fit(PPO(MlpPolicy, minibatch_size=64, update_epochs=2, compile="trace"), data)
    return watch.seen.astype(np.float64)


def check_a_run(folder: Path, warm_up: float, seconds: float, at_most: float) -> None:
    """Check that a run grows by no more than ``at_most`` bytes of memory, and by nothing else."""
    memory, files, threads = watch_a_run(folder, warm_up, seconds).T
    grown = growth(memory)
    print(
        f"{len(memory)} iterations in {seconds:g} s: memory {memory[0] / MIB:.1f} MiB, grew by "
        f"{grown / MIB:.2f} MiB; {files[-1]:g} files, {threads[-1]:g} threads"
    )
    assert grown <= at_most
    half = len(files) // 2  # minima: a checkpoint or a log may be open just then
    assert min(files[half:]) <= min(files[:half])
    assert min(threads[half:]) <= min(threads[:half])


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function`` where nothing that other tests have left behind moves the memory."""
    method = multiprocessing.get_start_method()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_call, method, function, *arguments).result()


def _call(method: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function``; its own processes start as usual, which spawned ones' would not."""
    multiprocessing.set_start_method(method, force=True)
    function(*arguments)


@pytest.mark.slow
def test_a_run_keeps_its_size(tmp_path: Path) -> None:
    in_own_process(check_a_run, tmp_path, 4, 8, 2 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_a_long_run_keeps_its_size(tmp_path: Path) -> None:
    """LONG_RUN_SECONDS says how long, after half a minute of warming up."""
    seconds = float(os.environ.get("LONG_RUN_SECONDS", "1800"))
    in_own_process(check_a_run, tmp_path, 30, seconds, 4 * MIB)


def use(spec: EnvironmentSpec) -> None:
    simulator = make_simulator(spec, [1, 2])
    simulator.reset()
    for _ in range(3):
        simulator.step(np.zeros((2, *(simulator.action_space.shape or ())), np.int64))
    simulator.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "cycles"),
    [
        (EnvironmentSpec("CartPole-v1", num_threads=2), 200),
        (EnvironmentSpec("CartPole-v1", backend="gymnasium"), 200),
        (
            EnvironmentSpec(
                "CartPole-v1", backend="gymnasium", options={"vectorization_mode": "async"}
            ),
            10,
        ),
    ],
    ids=["envpool", "gymnasium", "processes"],
)
def test_simulators_leave_nothing_behind(spec: EnvironmentSpec, cycles: int) -> None:
    in_own_process(check_simulators, spec, cycles)


def check_simulators(spec: EnvironmentSpec, cycles: int) -> None:
    memory, files, threads = [], [], []
    for cycle in range(cycles + 1):
        use(spec)
        if cycle % (cycles // 10) == 0:
            gc.collect()
            settle(lambda: len(os.listdir("/proc/self/task")), threads[0] if threads else None)
            for amounts, amount in zip((memory, files, threads), resources(), strict=True):
                amounts.append(amount)
    assert set(files) == {files[0]}
    assert set(threads) == {threads[0]}
    assert growth(np.array(memory[1:], np.float64)) <= 2 * MIB


def settle(amount: Callable[[], int], expected: int | None) -> None:
    """Wait a little for threads that have ended to disappear from the list."""
    deadline = time.monotonic() + 2
    while expected is not None and amount() != expected and time.monotonic() < deadline:
        time.sleep(0.001)
