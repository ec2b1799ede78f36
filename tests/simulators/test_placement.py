"""Where EnvPool's threads run, asked from the operating system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppo1_lightning import RolloutDataModule, distributed
from ppo1_lightning.simulators import EnvironmentSpec, Simulator, make_simulator
from ppo1_lightning.simulators.placement import own_cores, started_threads

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[set[int]]:
    before = os.sched_getaffinity(0)
    yield before
    assert os.sched_getaffinity(0) == before


def workers_of(
    num_envs: int, env_id: str = "InvertedPendulum-v4", **options: Any
) -> tuple[Simulator, list[int]]:
    with started_threads() as threads:
        simulator = make_simulator(EnvironmentSpec(env_id, **options), list(range(num_envs)))
    return simulator, threads[1:]  # the first one prepares buffers


def test_as_many_workers_as_cores_get_one_each(all_cores: set[int]):
    simulator, workers = workers_of(64)
    placed = [os.sched_getaffinity(worker) for worker in workers]
    assert sorted(placed, key=min) == [{core} for core in sorted(all_cores)]
    with simulator.stepping():
        assert os.sched_getaffinity(0) == all_cores


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_steps_that_take_less_than_waking_a_thread_have_one_worker(env_id: str):
    _, workers = workers_of(64, env_id)
    assert len(workers) == 1
    _, workers = workers_of(64, env_id, num_threads=2)
    assert len(workers) == 2


def test_fewer_workers_than_cores_stay_free(all_cores: set[int]):
    _, workers = workers_of(64, num_threads=len(all_cores) - 1)
    assert all(os.sched_getaffinity(worker) == all_cores for worker in workers)


def test_a_single_worker_shares_the_core_of_the_loop():
    simulator, (worker,) = workers_of(1)

    def share_and_fail() -> None:
        with simulator.stepping():
            assert len(os.sched_getaffinity(0)) == 1
            assert os.sched_getaffinity(worker) == os.sched_getaffinity(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_and_fail()


def test_nothing_moves_with_several_threads_of_pytorch_or_by_request(all_cores: set[int]):
    simulator, _ = workers_of(1)
    free, workers = workers_of(64, pin_threads=False)
    assert all(os.sched_getaffinity(worker) == all_cores for worker in workers)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for each in (simulator, free):
            with each.stepping():
                assert os.sched_getaffinity(0) == all_cores
    finally:
        torch.set_num_threads(before)


def test_ranks_share_the_cores(all_cores: set[int]):
    cores = sorted(all_cores)
    assert own_cores(1, 0) == cores
    halves = own_cores(2, 0), own_cores(2, 1)
    assert halves[0] == cores[: len(cores) // 2]
    assert not set(halves[0]) & set(halves[1])
    assert own_cores(len(cores) + 1, 0) == []


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2),
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, 2),
        ({"SLURM_LOCALID": "1", "SLURM_CPU_BIND": "quiet,mask_cpu:0x3,0xc"}, 1),
        ({"SLURM_LOCALID": "0", "SLURM_CPU_BIND": "quiet,none"}, 1),
    ],
    ids=["torchrun", "srun", "srun, bound", "srun, one a node"],
)
def test_cores_are_divided_among_the_ranks_of_a_machine(
    variables: dict[str, str], count: int, all_cores: set[int], monkeypatch: pytest.MonkeyPatch
):
    """Not among all eight of the run."""
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_cores(*distributed.local_ranks()) == sorted(all_cores)[-(len(all_cores) // count) :]


def test_the_rollouts_of_a_rank_run_on_its_own_cores(
    all_cores: set[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    data: Any = RolloutDataModule(
        "InvertedPendulum-v4", num_envs=64, num_steps=1, total_iterations=1
    )
    counters = SimpleNamespace(iterations=0)
    module = SimpleNamespace(counters=counters, observation_normalizer=None, wrapper_states=[])
    data.trainer = SimpleNamespace(lightning_module=module)
    with started_threads() as threads:
        simulator = data._make_simulator()
    simulator.close()
    assert len(threads) - 1 == len(all_cores) // 2
