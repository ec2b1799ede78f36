"""How sizes divide, what is refused and what is offered instead."""

from __future__ import annotations

from typing import Any

import pytest

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.budget import Budget
from ppo1_lightning.rollouts.sizes import Sizes

SIZES = {"num_envs": 8, "num_steps": 128, "minibatch_size": 256}


@pytest.mark.parametrize(
    ("num_envs", "minibatch_size", "expected"),
    [(8, 256, 8), (1, 64, 1), (8, 4, 4), (6, 64, 2), (7, 64, 1), (12, 18, 6)],
)
def test_default_number_of_workers(num_envs: int, minibatch_size: int, expected: int):
    for devices in (1, expected):
        sizes = Sizes.create(
            num_envs=num_envs, num_steps=100, minibatch_size=minibatch_size, devices=devices
        )
        assert sizes.mpi_workers == expected


def test_sizes_of_the_papers_atari_run():
    sizes = Sizes.create(**SIZES, epochs=3)
    assert (sizes.rows, sizes.rows_per_worker, sizes.worker_minibatch_size) == (1024, 128, 32)
    assert (sizes.minibatches, sizes.envs_per_device, sizes.workers_per_device) == (4, 8, 8)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_devices_only_divide_the_work(devices: int):
    one, many = Sizes.create(**SIZES), Sizes.create(**SIZES, devices=devices)
    assert many.envs_per_device * devices == many.workers_per_device * devices == 8
    for size in ("rows", "rows_per_worker", "worker_minibatch_size", "minibatches", "mpi_workers"):
        assert getattr(many, size) == getattr(one, size)


def test_a_trailing_partial_minibatch_is_dropped_and_said_so():
    sizes = Sizes.create(num_envs=2, num_steps=50, minibatch_size=32, epochs=4)
    assert (sizes.rows_per_worker, sizes.worker_minibatch_size, sizes.minibatches) == (50, 16, 3)
    rows = sizes.describe(Budget(total_steps=1000))
    assert "4 rows left out" in rows["minibatches per epoch"]
    assert rows["iterations"] == "10"
    assert rows["optimizer steps"] == "12 per iteration, 120 in all"


def test_one_minibatch_of_the_whole_rollout():
    sizes = Sizes.create(**{**SIZES, "minibatch_size": None})
    assert (sizes.minibatch_size, sizes.minibatches, sizes.mpi_workers) == (1024, 1, 8)


def test_description():
    rows = Sizes.create(**SIZES, devices=2, epochs=3).describe(Budget(total_seconds=60))
    assert rows["environments"] == "8 (4 per device)"
    assert rows["workers"] == "8 (4 per device)"
    assert rows["rows per iteration"] == "1,024 (512 per device)"
    assert rows["rows per minibatch"] == "256 (128 per device, 32 per worker)"
    assert rows["minibatches per epoch"] == "4"
    assert rows["budget"] == "60 seconds"
    assert rows["iterations"] == "as the run goes"
    assert rows["optimizer steps"] == "12 per iteration, as the run goes"


@pytest.mark.parametrize(
    ("num_envs", "workers", "devices", "envs_on_each"),
    [(1, 1, 2, 1), (8, 1, 2, 4), (8, 8, 3, 3), (2, 2, 4, 1), (6, 6, 4, 2)],
)
def test_devices_share_what_does_not_divide(
    num_envs: int, workers: int, devices: int, envs_on_each: int
) -> None:
    sizes = Sizes.create(
        num_envs=num_envs, num_steps=64, minibatch_size=48, mpi_workers=workers, devices=devices
    )
    assert sizes.shared
    assert (sizes.envs_per_device, sizes.workers_per_device) == (envs_on_each, workers)
    rows = sizes.describe(Budget(total_seconds=60))
    assert rows["rows per iteration"] == f"{64 * num_envs} ({64 * num_envs} per device)"
    assert rows["rows per minibatch"].startswith(f"48 ({48 // devices} per device")
    copies = envs_on_each * devices - num_envs
    said = {0: "", 1: " and 1 copy"}.get(copies, f" and {copies} copies")
    assert rows["environments"] == f"{num_envs}{said} ({envs_on_each} per device)"


def test_a_device_s_share_of_a_minibatch_is_of_whole_units() -> None:
    sizes = {"num_envs": 1, "num_steps": 64, "mpi_workers": 1, "sequence_length": 16}
    for units, devices, rows in ((4, 3, 32), (2, 3, 16), (1, 2, 16)):
        shared = Sizes.create(**sizes, minibatch_size=16 * units, devices=devices)
        assert shared.minibatch_rows_per_device == rows
        assert shared.idle_devices == max(0, devices - units)
        told = shared.describe(Budget(total_seconds=60))["rows per minibatch"]
        assert ("none for 1 of them" in told) is (devices > units)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mpi_workers": 3}, "num_envs=8 is not a multiple of mpi_workers=3.*num_envs=6 or 9"),
        ({"mpi_workers": 16}, "num_envs=8 is not a multiple of mpi_workers=16.*num_envs=16$"),
        ({"mpi_workers": 8, "minibatch_size": 60}, "minibatch_size=60 .*minibatch_size=56 or 64"),
        ({"minibatch_size": 2048}, "minibatch_size=2048 is more than .* 1024 rows"),
        ({"devices": 1025}, "1025 devices are more than .* 1024 rows, expected at most 1024"),
        ({"num_envs": 0}, "num_envs=0 is out of range, expected at least 1"),
        ({"num_steps": -1}, "num_steps=-1 is out of range"),
        ({"minibatch_size": 2.5}, "minibatch_size=2.5 is not a whole number"),
        ({"mpi_workers": 0}, "mpi_workers=0 is out of range"),
        ({"epochs": "3"}, "epochs='3' is not a whole number"),
        ({"num_envs": True}, "num_envs=True is not a whole number"),
        ({"num_steps": float("inf")}, "num_steps=inf is not a whole number"),
        ({"num_steps": float("nan")}, "num_steps=nan is not a whole number"),
    ],
)
def test_errors_are_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message) as error:
        Sizes.create(**{**SIZES, **changes})
    assert "\n" not in str(error.value)


def test_what_an_error_offers_is_accepted():
    Sizes.create(num_envs=9, num_steps=128, minibatch_size=255, mpi_workers=3)
    Sizes.create(**{**SIZES, "minibatch_size": 8, "devices": 8})
    Sizes.create(**{**SIZES, "minibatch_size": 1024})


def test_whole_floats_become_integers():
    sizes = Sizes.create(num_envs=8.0, num_steps=1e2, minibatch_size=32)  # type: ignore[arg-type]
    assert (sizes.num_envs, sizes.num_steps) == (8, 100)
    assert type(sizes.num_steps) is int
