"""How environments, workers, minibatches and devices divide: checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppo1_lightning.errors import ConfigurationError, check_integer, check_memory
from ppo1_lightning.rollouts.budget import Budget

ROW_BYTES = 64
"""Of a row of a rollout, at least."""

ORDER_BYTES = 24
"""Of a row in an order: its number, weight and advantage."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run. All but ``devices`` describe the experiment, which devices only divide.

    A *worker* is what an MPI process was to ppo1 (``mpirun -np mpi_workers``): it has its own
    environments, standardises its own advantages and shuffles its own segment, and every minibatch
    takes the same number of rows from each worker.

    What is shuffled is a *unit*: a row or, for a policy with memory, ``sequence_length`` rows of
    one environment.

    Raises:
        ConfigurationError: sizes that do not divide, with the nearest that do.
    """

    num_envs: int
    num_steps: int
    minibatch_size: int
    mpi_workers: int
    epochs: int = 1  # passes over a rollout in minibatches
    devices: int = 1
    sequence_length: int = 1

    @classmethod
    def create(
        cls,
        *,
        num_envs: int,
        num_steps: int,
        minibatch_size: int | None,
        mpi_workers: int | None = None,
        epochs: int = 1,
        devices: int = 1,
        sequence_length: int = 1,
    ) -> Sizes:
        """Check the sizes and fill in what is None: ``minibatch_size`` with the whole rollout.

        The default of ``mpi_workers`` is num_envs, or its largest divisor that divides a
        minibatch's units; it does not depend on the devices, which only divide the experiment.
        """
        num_envs = check_integer("num_envs", num_envs, at_least=1)
        num_steps = check_integer("num_steps", num_steps, at_least=1)
        rows = num_envs * num_steps
        check_memory(f"a rollout of num_envs * num_steps = {rows:,} rows", rows * ROW_BYTES)
        epochs = check_integer("epochs", epochs, at_least=1)
        check_memory(
            f"{epochs:,} passes (update_epochs, vf_iters) over {rows:,} rows",
            rows * epochs * ORDER_BYTES,
        )
        if minibatch_size is None:
            minibatch_size = rows
        minibatch_size = check_integer("minibatch_size", minibatch_size, at_least=1)
        length = check_integer("sequence_length", sequence_length, at_least=1)
        _check_units(num_steps, minibatch_size, length)
        if mpi_workers is None:
            mpi_workers = _default_mpi_workers(num_envs, minibatch_size // length)
        sizes = cls(
            num_envs,
            num_steps,
            minibatch_size,
            check_integer("mpi_workers", mpi_workers, at_least=1),
            epochs,
            devices,
            length,
        )
        sizes._check()
        return sizes

    def _check(self) -> None:
        _check_divides("num_envs", self.num_envs, "mpi_workers", self.mpi_workers)
        length = self.sequence_length
        _check_divides(
            "minibatch_size", self.minibatch_size, "mpi_workers", self.mpi_workers, length
        )
        if self.devices > self.rows:
            raise ConfigurationError(
                f"{self.devices} devices are more than the rollout's num_envs * num_steps = "
                f"{self.rows} rows, expected at most {self.rows}"
            )
        if self.minibatch_size > self.rows:
            raise ConfigurationError(
                f"minibatch_size={self.minibatch_size} is more than the rollout's "
                f"num_envs * num_steps = {self.rows} rows, expected at most {self.rows}"
            )

    @property
    def rows(self) -> int:
        """Rows of a rollout, over all devices."""
        return self.num_envs * self.num_steps

    @property
    def rows_per_worker(self) -> int:
        """Rows of a worker's segment."""
        return self.rows // self.mpi_workers

    @property
    def worker_minibatch_size(self) -> int:
        """A worker's share of every minibatch (ppo1's ``optim_batchsize``)."""
        return self.minibatch_size // self.mpi_workers

    @property
    def units_per_worker(self) -> int:
        """Units of a worker's segment."""
        return self.rows_per_worker // self.sequence_length

    @property
    def minibatches(self) -> int:
        """Minibatches of an epoch; a trailing partial one is dropped, as in the original."""
        return self.rows_per_worker // self.worker_minibatch_size

    @property
    def orders(self) -> tuple[int, int, int, int]:
        """What `shuffled_units` draws: orders, one more than epochs, for every worker."""
        units = self.worker_minibatch_size // self.sequence_length
        return self.epochs + 1, self.mpi_workers, self.units_per_worker, units

    @property
    def shared(self) -> bool:
        """Tell whether every rank has the whole rollout, and its share of each minibatch's rows.

        So it is where the workers do not divide over the devices; else a rank has its workers'.
        """
        return self.mpi_workers % self.devices > 0

    @property
    def envs_per_device(self) -> int:
        """Environments that each rank steps, see `distributed.own_environments`."""
        return -(-self.num_envs // self.devices)

    @property
    def copies(self) -> int:
        """Environments that are stepped for nothing, since they do not divide over the devices."""
        return self.devices * self.envs_per_device - self.num_envs

    @property
    def and_copies(self) -> str:
        """`copies` as the end of a phrase, "" without."""
        return f" and {self.copies} cop{'y' if self.copies == 1 else 'ies'}" if self.copies else ""

    @property
    def minibatch_rows_per_device(self) -> int:
        """Rows of a minibatch that a rank learns from, at most: of whole units."""
        units = self.minibatch_size // self.sequence_length
        return -(-units // self.devices) * self.sequence_length

    @property
    def idle_devices(self) -> int:
        """Devices that have no row of any minibatch: there are more of them than units in it."""
        return max(0, self.devices - self.minibatch_size // self.sequence_length)

    @property
    def workers_per_device(self) -> int:
        """Workers whose rows each rank has."""
        return self.mpi_workers if self.shared else self.mpi_workers // self.devices

    def describe(self, budget: Budget) -> dict[str, str]:
        """Return what the sizes say about a run of ``budget``, for printing."""
        iterations = budget.iterations(self.rows)
        steps = self.minibatches * self.epochs
        dropped = self.rows - self.minibatches * self.minibatch_size
        total = "as the run goes" if iterations is None else f"{iterations * steps:,} in all"
        per_device = f"{self.minibatch_rows_per_device} per device"
        if self.idle_devices:
            per_device += f", none for {self.idle_devices} of them"
        rows_per_device = self.rows // (1 if self.shared else self.devices)
        return {
            "budget": str(budget),
            "devices": f"{self.devices}",
            "environments": f"{self.num_envs}{self.and_copies} ({self.envs_per_device} per device)",
            "workers": f"{self.mpi_workers} ({self.workers_per_device} per device)",
            "rows per iteration": f"{self.rows:,} ({rows_per_device:,} per device)",
            "rows per minibatch": f"{self.minibatch_size:,} ({per_device}, "
            f"{self.worker_minibatch_size} per worker)",
            **({"units": f"of {self.sequence_length} rows"} if self.sequence_length > 1 else {}),
            "minibatches per epoch": f"{self.minibatches}"
            + (f" ({dropped} rows left out of each epoch)" if dropped else ""),
            "iterations": "as the run goes" if iterations is None else f"{iterations:,}",
            "optimizer steps": f"{steps:,} per iteration, {total}",
        }


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _default_mpi_workers(num_envs: int, minibatch_units: int) -> int:
    return max(d for d in _divisors(num_envs) if minibatch_units % d == 0)


def _check_units(num_steps: int, minibatch_size: int, length: int) -> None:
    """Refuse rollouts and minibatches that are not of whole units, with the nearest that are."""
    if num_steps % length:
        divisors = _divisors(num_steps)
        near = [max(d for d in divisors if d < length), *[d for d in divisors if d > length][:1]]
        raise ConfigurationError(
            f"sequence_length={length} does not divide num_steps={num_steps}; nearest that do: "
            f"sequence_length={' or '.join(map(str, near))}"
        )
    if minibatch_size % length:
        common = [d for d in _divisors(num_steps) if minibatch_size % d == 0]
        raise ConfigurationError(
            f"minibatch_size={minibatch_size} is not a multiple of sequence_length={length}, of "
            f"whose units minibatches are made; nearest that are: minibatch_size="
            f"{' or '.join(_nearest_multiples(minibatch_size, length))}; or "
            f"sequence_length={max(common)}"
        )


def _check_divides(whole_key: str, whole: int, part_key: str, part: int, length: int = 1) -> None:
    """Refuse a number that is not a multiple of another's, of units of ``length`` rows."""
    if whole % (part * length) == 0:
        return
    units = f" * sequence_length={length}" if length > 1 else ""
    near = _nearest_multiples(whole, part * length)
    raise ConfigurationError(
        f"{whole_key}={whole} is not a multiple of {part_key}={part}{units}; "
        f"nearest that are: {whole_key}={' or '.join(near)}"
    )


def _nearest_multiples(number: int, of: int) -> list[str]:
    below, above = number // of * of, -(-number // of) * of
    return [str(n) for n in (below, above) if n > 0]
