"""One and several devices are the same experiment: parameters, statistics and metrics agree.

All two-device runs share one pair of processes, and so on; the one-device runs are
made in the test's own.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from golden_replay import path_of
from gymnasium.spaces import Box, Discrete
from lightning import Trainer
from numpy.typing import NDArray
from ranks import run_on_ranks
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, CnnPolicy, MlpPolicy, Rollout, RolloutDataModule, distributed
from ppo1_lightning.policies.base import ActionOutputs
from ppo1_lightning.rollouts.dataset import _without_copies
from ppo1_lightning.rollouts.segment import Minibatch

pytestmark = pytest.mark.heavy

NUM_ENVS, NUM_STEPS, ITERATIONS = 4, 32, 2
EPOCHS = 4


# -------------------------------------------------------------------- recorded rollouts


def recorded(kind: str, iteration: int) -> Rollout:
    """Return a rollout of all environments, of which the last two end five times as often.

    Rewards and observations differ by environment too, so that no statistic is the same on both
    ranks. ``kind`` is "box", "discrete" or "image".
    """
    generator = np.random.default_rng([iteration, len(kind)])
    shape = (NUM_STEPS, NUM_ENVS)
    env = np.arange(NUM_ENVS)
    ends = np.zeros(shape, np.bool_)
    for t in range(NUM_STEPS - 1):
        after_reset = ~ends[t - 1] if t else np.full(NUM_ENVS, True)
        ends[t] = after_reset & (generator.random(NUM_ENVS) < np.where(env < 2, 0.06, 0.3))
    valid = np.concatenate([np.full((1, NUM_ENVS), True), ~ends[:-1]])
    truncated = ends & (generator.random(shape) < 0.5)

    if kind == "image":
        observations = generator.integers(0, 64 * (env + 1), (*shape[:1], 4, 36, 36, NUM_ENVS))
        observations = np.moveaxis(observations, -1, 1).astype(np.uint8)
    else:
        observations = generator.normal(env[:, None], 1.0 + env[:, None], (*shape, 3))
    actions = (
        generator.normal(size=(*shape, 2)) if kind == "box" else generator.integers(0, 3, shape)
    )
    rewards = np.where(valid, generator.normal(env, 1.0 + env, shape), 0.0)
    episode = np.where(ends, generator.integers(1, 20, shape), np.nan)
    return Rollout(
        observations=as_tensor(observations),
        actions=as_tensor(actions),
        rewards=as_tensor(rewards),
        values=as_tensor(generator.normal(size=(NUM_STEPS + 1, NUM_ENVS))),
        dist_params=as_tensor(0.1 * generator.normal(size=(*shape, 3))),
        terminated=as_tensor(ends & ~truncated),
        truncated=as_tensor(truncated),
        valid=as_tensor(valid),
        episode_returns=as_tensor(episode * (1 + env)),
        episode_lengths=as_tensor(episode),
        policy_version=iteration,
        fraction_spent=iteration / ITERATIONS,
    )


def as_tensor(array: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor


class RecordedRollouts(IterableDataset[Rollout]):
    """One rank's environments of every recorded rollout; the last of three has copies only."""

    def __init__(self, kind: str, rank: int, ranks: int) -> None:
        self.kind, self.rank, self.ranks = kind, rank, ranks

    def __len__(self) -> int:
        return ITERATIONS

    def __iter__(self) -> Iterator[Rollout]:
        for iteration in range(ITERATIONS):
            whole = recorded(self.kind, iteration)
            fields: dict[str, Any] = {
                name: field[:, own_environments(self.rank, self.ranks)]
                for name, field in whole._asdict().items()
                if isinstance(field, Tensor)
            }
            yield _without_copies(whole._replace(**fields), NUM_ENVS)


def own_environments(rank: int, ranks: int, num_envs: int = NUM_ENVS) -> list[int]:
    share = -(-num_envs // ranks)
    return [i % num_envs for i in range(rank * share, (rank + 1) * share)]


# -------------------------------------------------------------------- runs


class Snapshot(NamedTuple):
    """What an iteration left behind on one rank."""

    parameters: dict[str, Tensor]
    statistics: list[Tensor]  # running sums of observations and of returns
    metrics: dict[str, float]
    path: str  # of execution
    losses: int  # evaluations of the loss, where it is not compiled
    acted_on: set[int]  # environments in each call of `act`
    observations: Tensor  # [T, N of this rank, ...]


class Tally:
    """Counts, where no graph looks: one that had read an attribute which changes would give way."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class WatchedPPO(PPO):
    """PPO that takes a snapshot of every iteration."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.snapshots: list[Snapshot] = []
        self.losses, self.acted_on = Tally(), set()

    def configure_model(self) -> None:
        super().configure_model()
        if not self.snapshots:
            self.snapshots.append(self.snapshot(torch.empty(0)))

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.losses.count = 0
        super().training_step(rollout, batch_idx)
        self.snapshots.append(self.snapshot(rollout.observations))

    def loss(self, batch: Minibatch) -> Tensor:
        self.losses.count += 1
        return super().loss(batch)

    def act(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        self.acted_on.add(len(observations))
        return super().act(observations, noise, *memory)

    def act_as_shown(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        self.acted_on.add(len(observations))
        return super().act_as_shown(observations, noise, *memory)

    def snapshot(self, observations: Tensor) -> Snapshot:
        in_policy = getattr(self.policy, "observation_normalizer", None)
        normalizers = (in_policy, self.observation_normalizer, self.reward_normalizer)
        return Snapshot(
            {name: p.detach().clone() for name, p in self.policy.named_parameters()},
            [v.clone() for n in normalizers if n is not None for v in n.get_extra_state().values()],
            {name: value for name, value in self.metrics.items() if name != "steps_per_second"},
            path_of(self),
            self.losses.count,
            set(self.acted_on),
            observations,
        )


def fit(module: WatchedPPO, data: Any, ranks: int) -> list[Snapshot]:
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=-1 if isinstance(data, RolloutDataModule) else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module.snapshots


Run = Callable[[int, int], list[Snapshot]]
"""From rank and number of ranks to the state before the run and after each iteration."""


def from_recorded(rank: int, ranks: int, *, kind: str = "box", **options: Any) -> list[Snapshot]:
    module = WatchedPPO(
        CnnPolicy if kind == "image" else partial(MlpPolicy, hidden_size=16, num_layers=1),
        observation_space=Box(0, 255, (4, 36, 36), np.uint8)
        if kind == "image"
        else Box(-np.inf, np.inf, (3,), np.float32),
        action_space=Box(-1, 1, (2,), np.float32) if kind == "box" else Discrete(3),
        **{
            "minibatch_size": 32,
            "update_epochs": EPOCHS,
            "learning_rate": 1e-3,
            "anneal": ["learning_rate"],
            "ent_coef": 0.01,
            "compile": False,
            **options,
        },
    )
    return fit(module, RecordedRollouts(kind, rank, ranks), ranks)


def from_start(
    rank: int,
    ranks: int,
    *,
    env: str,
    step_by_step: bool = False,
    num_envs: int = NUM_ENVS,
    minibatch_size: int = 64,
    memory: dict[str, Any] | None = None,
    compile: bool | str = False,
    **options: Any,
) -> list[Snapshot]:
    module = WatchedPPO(
        partial(MlpPolicy, normalize_observations=not step_by_step, **(memory or {})),
        minibatch_size=minibatch_size,
        update_epochs=EPOCHS,
        normalize_observations=step_by_step,
        normalize_returns=step_by_step,
        compile=compile,
        ent_coef=0.05 * step_by_step,  # so that every parameter moves in every iteration
        **options,
    )
    data = RolloutDataModule(env, num_envs=num_envs, num_steps=400 // num_envs, total_iterations=5)
    return fit(module, data, ranks)


CLIPPED = {"value_clip": 0.2, "max_grad_norm": 0.1}
UPDATES: dict[str, Run] = {
    "box": from_recorded,
    "discrete": partial(from_recorded, kind="discrete"),
    "image": partial(from_recorded, kind="image"),
    "two workers": partial(from_recorded, mpi_workers=2),
    "one worker": partial(from_recorded, mpi_workers=1, bootstrap_truncation=True),
    "one worker, rollout": partial(from_recorded, mpi_workers=1, normalize_advantages="rollout"),
    "one worker, minibatch": partial(
        from_recorded,
        mpi_workers=1,
        normalize_advantages="minibatch_sample",
        normalize_returns=True,
        minibatch_size=31,
    ),
    "two rows a minibatch": partial(  # so that of three ranks and more some have none
        from_recorded,
        mpi_workers=1,
        minibatch_size=2,
        normalize_advantages="minibatch_sample",
        update_epochs=1,
    ),
    "one worker, traced": partial(from_recorded, mpi_workers=1, **CLIPPED, compile="trace"),
    "rollout": partial(from_recorded, normalize_advantages="rollout"),
    "minibatch": partial(from_recorded, normalize_advantages="minibatch"),
    "none": partial(from_recorded, normalize_advantages="none"),
    "target_kl": partial(
        from_recorded, target_kl=0.005, update_epochs=8, learning_rate=3e-3, anneal=()
    ),
    "normalize_returns": partial(from_recorded, normalize_returns=True),
    "bootstrap_truncation": partial(from_recorded, bootstrap_truncation=True),
    "clipped": partial(from_recorded, **CLIPPED),
    "traced": partial(from_recorded, **CLIPPED, compile="trace"),
    "compiled": partial(from_recorded, **CLIPPED, compile=True),
}
PATHS = {"traced": "traced", "compiled": "compiled", "one worker, traced": "traced"}
EAGER = {"traced": "clipped", "compiled": "clipped"}
"""Runs that must agree with another one on one device, which spares compiling twice."""

STEP_BY_STEP = "Pendulum-v1, step by step"
ALONE_IN_IT = "Pendulum-v1, one environment"
ENVS: dict[str, Run] = {
    "CartPole-v1": partial(from_start, env="CartPole-v1"),
    "Pendulum-v1": partial(from_start, env="Pendulum-v1"),
    STEP_BY_STEP: partial(from_start, env="Pendulum-v1", step_by_step=True),
    ALONE_IN_IT: partial(from_start, env="Pendulum-v1", num_envs=1),
    f"{ALONE_IN_IT}, step by step": partial(
        from_start, env="Pendulum-v1", num_envs=1, step_by_step=True
    ),
}
MEMORY: dict[str, Any] = {
    "env": "CartPole-v1",
    "memory": {"memory": "gru", "memory_size": 8},
    "minibatch_size": 100,  # four units of 25 rows
    "sequence_length": 25,
    "learning_rate": 1e-3,
}
ENVS |= {
    "memory": partial(from_start, **MEMORY),
    "memory, one worker": partial(from_start, **MEMORY, mpi_workers=1),
    "memory, one unit": partial(
        from_start, **{**MEMORY, "minibatch_size": 25}, mpi_workers=1, compile="trace"
    ),
}
RUNS: dict[str, Run] = UPDATES | ENVS
ONLY_ON_TWO = {"compiled"}  # it takes long

several = pytest.mark.parametrize(
    "ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))]
)


# -------------------------------------------------------------------- deliberate mistakes


class Mistake(NamedTuple):
    """One of the runs above, in which a function of the package is told something wrong."""

    run: str
    function: str
    belief: dict[str, int]  # what `distributed` tells it

    def make(self) -> AbstractContextManager[Any]:
        target = f"ppo1_lightning.{self.function}"
        original = pkgutil.resolve_name(target)
        told: dict[str, Any] = {k: lambda value=v: value for k, v in self.belief.items()}

        def mistaken(*args: Any, **kwargs: Any) -> Any:
            with patch.multiple(distributed, **told):
                return original(*args, **kwargs)

        return patch(target, mistaken)


ALONE = {"world_size": 1}  # so that sums and gathered tensors stay local
FIRST = {"rank": 0}  # so that every rank takes the first share

NORMALIZERS = "policies.normalization"

MISTAKES = {
    "advantage moments": Mistake("rollout", "rollouts.segment._standardized", ALONE),
    "minibatch's advantage moments": Mistake("minibatch", "rollouts.segment._standardized", ALONE),
    "weights": Mistake("box", "rollouts.segment.minibatch_weights", ALONE),
    "order": Mistake("box", "algorithms.on_policy.OnPolicyModule.minibatch_order", FIRST),
    "gradient": Mistake("box", "algorithms.update.EagerUpdate.__call__", ALONE),
    "observation moments": Mistake(
        "box", "policies.normalization.ObservationNormalizer.update", ALONE
    ),
    "a step's observation moments": Mistake(
        STEP_BY_STEP, "policies.normalization.StepNormalizer.observe", ALONE
    ),
    "return moments": Mistake(
        "normalize_returns", "policies.normalization.RewardNormalizer.forward", ALONE
    ),
    "seeds": Mistake("CartPole-v1", "rollouts.datamodule.RolloutDataModule._make_simulator", FIRST),
    "noise": Mistake("Pendulum-v1", "rollouts.dataset.RolloutDataset.collect", FIRST),
}
MEASURING_MISTAKES = {
    "losses": Mistake("box", "algorithms.metrics.measure", ALONE),
    "explained variance": Mistake("box", "algorithms.metrics.explained_variance", ALONE),
    "episodes": Mistake("box", "rollouts.episodes.EpisodeStatistics.update", ALONE),
}


# -------------------------------------------------------------------- one device, several devices


def on_this_rank(rank: int, ranks: int) -> dict[str, list[Snapshot]]:
    """Make every run and, as one of two ranks, every mistake."""
    todo: dict[str, tuple[Run, AbstractContextManager[Any]]] = {
        name: (run, nullcontext())
        for name, run in RUNS.items()
        if ranks == 2 or name not in ONLY_ON_TWO
    }
    if ranks == 2:
        mistakes = MISTAKES | MEASURING_MISTAKES
        todo |= {name: (RUNS[mistake.run], mistake.make()) for name, mistake in mistakes.items()}
    results = {}
    for name, (run, conditions) in todo.items():
        with conditions:
            results[name] = run(rank, ranks)
    return results


@cache
def several_devices(ranks: int) -> list[dict[str, list[Snapshot]]]:
    """Return the snapshots of each rank by name, of all runs and mistakes."""
    return run_on_ranks(on_this_rank, ranks, ranks)


@pytest.fixture
def two_devices() -> list[dict[str, list[Snapshot]]]:
    return several_devices(2)


@cache
def one_device(name: str) -> list[Snapshot]:
    return RUNS[name](0, 1)


def check_parameters(ours: list[Snapshot], theirs: list[Snapshot], atol: float) -> None:
    """Compare what the update has left behind after each iteration."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.parameters, other.parameters, atol=atol, rtol=0)


def check_metrics(ours: list[Snapshot], theirs: list[Snapshot], tolerance: float) -> None:
    """Compare what was logged after each iteration."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.metrics.keys() == other.metrics.keys()
        for name, value in mine.metrics.items():
            expected = pytest.approx(other.metrics[name], abs=tolerance, rel=tolerance, nan_ok=True)
            assert value == expected, name


def check_moved(snapshots: list[Snapshot]) -> None:
    """Every parameter has changed in every iteration."""
    for before, after in pairwise(snapshots):
        for name, parameter in after.parameters.items():
            assert (parameter - before.parameters[name]).abs().max() > 1e-4, name


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_different_numbers_of_invalid_rows(ranks: int) -> None:
    for kind in ("box", "discrete", "image"):
        for iteration in range(ITERATIONS):
            rollout = recorded(kind, iteration)
            invalid = (~rollout.valid).view(NUM_STEPS, ranks, -1).sum((0, 2)).tolist()
            assert min(invalid) < max(invalid) / 2
            assert rollout.truncated.any()
            assert rollout.terminated.any()


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        *((2, name) for name in UPDATES),
        *(
            pytest.param(ranks, name, marks=pytest.mark.slow)
            for ranks in (3, 4)
            for name in UPDATES
            if name not in ONLY_ON_TWO
        ),
    ],
)
def test_the_update_is_the_same_on_several_devices(ranks: int, name: str) -> None:
    expected = one_device(EAGER.get(name, name))
    assert len(expected) == 1 + ITERATIONS
    check_moved(expected)
    path = PATHS.get(name, "eager")
    for rank in several_devices(ranks):
        assert rank[name][-1].path == path
        check_parameters(rank[name], expected, 1e-6)
        check_metrics(rank[name], expected, 2e-6)
        for mine, other in zip(rank[name], expected, strict=True):
            torch.testing.assert_close(mine.statistics, other.statistics, atol=1e-6, rtol=1e-9)


@several
def test_target_kl_ends_the_epochs_early_on_all_ranks(ranks: int) -> None:
    minibatches = NUM_STEPS * NUM_ENVS // 32
    steps = [snapshot.losses for snapshot in one_device("target_kl")[1:]]
    for taken in steps:
        assert minibatches < taken < 8 * minibatches
        assert taken % minibatches == 0
    for rank in several_devices(ranks):
        assert [snapshot.losses for snapshot in rank["target_kl"][1:]] == steps


@several
@pytest.mark.parametrize("env", ENVS)
def test_a_run_is_the_same_on_several_devices(env: str, ranks: int) -> None:
    expected = one_device(env)
    assert len(expected) == 1 + 5
    check_moved(expected)
    for rank in several_devices(ranks):
        check_parameters(rank[env], expected, 1e-5)
        check_metrics(rank[env], expected, 1e-4)
        for mine, other in zip(rank[env][1:], expected[1:], strict=True):
            returns = (snapshot.metrics["episode_return_mean"] for snapshot in (mine, other))
            np.testing.assert_allclose(*returns, rtol=1e-5)
    assert not np.isnan(expected[-1].metrics["episode_return_mean"])


@several
@pytest.mark.parametrize("env", ENVS)
def test_each_rank_steps_only_its_own_environments(env: str, ranks: int) -> None:
    """Or copies of the first ones, where there are not enough."""
    num_envs = 1 if env.startswith(ALONE_IN_IT) else NUM_ENVS
    for snapshots in zip(
        one_device(env)[1:], *(rank[env][1:] for rank in several_devices(ranks)), strict=True
    ):
        whole, *parts = snapshots
        assert whole.acted_on == {num_envs}
        assert torch.equal(parts[0].observations, parts[1].observations) == (num_envs == 1)
        for rank, part in enumerate(parts):
            environments = own_environments(rank, ranks, num_envs)
            assert part.acted_on == {len(environments)}
            own = whole.observations[:, environments]
            torch.testing.assert_close(part.observations, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_rank_local_quantity_would_be_noticed(name: str, two_devices: Any) -> None:
    expected = one_device(MISTAKES[name].run)
    for rank in two_devices:
        with pytest.raises(AssertionError, match="not close"):
            check_parameters(rank[name], expected, 1e-5)


@pytest.mark.parametrize("name", MEASURING_MISTAKES)
def test_a_rank_local_measurement_would_be_noticed(name: str, two_devices: Any) -> None:
    expected = one_device(MEASURING_MISTAKES[name].run)
    for rank in two_devices:
        check_parameters(rank[name], expected, 1e-6)
        with pytest.raises(AssertionError):
            check_metrics(rank[name], expected, 1e-4)
