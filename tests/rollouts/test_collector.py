"""Rollouts against environments stepped by hand: rows, GAE, episodes, noise and budgets.

The references are loops over whole episodes in plain Python and float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import envpool
import gymnasium
import numpy as np
import pytest
import scripted_env
import torch
from gymnasium.spaces import Box
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, MlpPolicy, Rollout, RolloutDataModule, distributed
from ppo1_lightning.errors import SimulationError
from ppo1_lightning.functional.distributions import DiagonalGaussian, Distribution
from ppo1_lightning.policies.base import ActionOutputs
from ppo1_lightning.policies.normalization import StepNormalizer
from ppo1_lightning.rollouts.acting import ModuleActing
from ppo1_lightning.rollouts.budget import Budget, Counters
from ppo1_lightning.rollouts.collector import Acting
from ppo1_lightning.rollouts.dataset import RolloutDataset
from ppo1_lightning.rollouts.seeding import environment_seeds
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.rollouts.sizes import Sizes
from ppo1_lightning.simulators.base import EnvironmentSpec, RawStep, Simulator, Step

GAMMA, LAMBDA = 0.97, 0.9
SCRIPTED = EnvironmentSpec("scripted_env:Scripted-v0", reward_scale=0.5)
# Shorter than most episodes of a random policy: some fall, some reach the limit.
CARTPOLE = EnvironmentSpec(
    "CartPole-v1", options={"max_episode_steps": 20}, reward_scale=0.125, num_threads=1
)


# -------------------------------------------------------------------- runs that are looked at


@dataclass
class Record:
    """What one iteration had to work with."""

    rollout: Rollout
    policy: nn.Module  # a copy from the time of collection, before the update
    counters: Counters  # a copy, likewise
    minibatches: list[Minibatch] = field(default_factory=list)  # of every gradient step
    metrics: dict[str, float] = field(default_factory=dict)


class RecordingPPO(PPO):
    """PPO that keeps what it saw."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, compile=False, **options)
        self.records: list[Record] = []

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        self.records.append(Record(rollout, deepcopy(self.policy), deepcopy(self.counters)))
        super().training_step(rollout, batch_idx)
        self.records[-1].metrics = self.metrics

    def loss(self, batch: Minibatch) -> Tensor:
        self.records[-1].minibatches.append(batch)
        return super().loss(batch)


class WholeRolloutPPO(RecordingPPO):
    """Its only minibatch is the rollout as it was collected, with advantages as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            MlpPolicy,
            update_epochs=1,
            mpi_workers=1,
            normalize_advantages="none",
            learning_rate=3e-3,
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            **options,
        )

    def minibatch_order(self, sizes: Sizes) -> Tensor:
        return torch.arange(sizes.rows).expand(sizes.epochs + 1, 1, 1, -1)


def fit(module: PPO, data: RolloutDataModule, max_epochs: int = -1) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


class Run(NamedTuple):
    spec: EnvironmentSpec
    seeds: list[int]
    bootstrap_truncation: bool
    module: WholeRolloutPPO

    def all(self, name: str) -> NDArray[Any]:
        """Return a field of all rollouts, one after the other: ``[iterations * T, N, ...]``."""
        return np.concatenate([getattr(r.rollout, name).numpy() for r in self.module.records])


@pytest.fixture(scope="module", params=["CartPole-v1", "scripted"])
def env(request: pytest.FixtureRequest) -> tuple[EnvironmentSpec, int, int, int]:
    """Return the spec, num_envs, num_steps and iterations of a run."""
    return {"CartPole-v1": (CARTPOLE, 4, 16, 10), "scripted": (SCRIPTED, 4, 6, 40)}[request.param]


@pytest.fixture(scope="module", params=[False, True], ids=["time limit ends", "bootstrapped"])
def run(env: tuple[EnvironmentSpec, int, int, int], request: pytest.FixtureRequest) -> Run:
    spec, num_envs, num_steps, iterations = env
    module = WholeRolloutPPO(
        minibatch_size=num_envs * num_steps, bootstrap_truncation=request.param
    )
    data = RolloutDataModule(
        spec, num_envs=num_envs, num_steps=num_steps, total_iterations=iterations, seed=3
    )
    fit(module, data)
    assert len(module.records) == iterations
    return Run(spec, environment_seeds(3, num_envs), request.param, module)


# -------------------------------------------------------------------- the reference


@dataclass
class Episode:
    """One episode of one environment, played by hand; the last one may still be under way."""

    first_row: int  # of the run, where its first transition must stand
    observations: list[NDArray[Any]]  # one more than rewards
    rewards: list[float] = field(default_factory=list)
    ending: str = ""


class GymnasiumByHand:
    def __init__(self, spec: EnvironmentSpec, seed: int) -> None:
        self._env = gymnasium.make(spec.id, **spec.options)
        self.first = self._env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return observation, float(reward), terminated, truncated

    def restart(self) -> Any:
        return self._env.reset()[0]


class EnvPoolByHand:
    def __init__(self, spec: EnvironmentSpec, seed: int) -> None:
        options = dict(spec.options)
        self._pool: Any = envpool.make_gymnasium(
            spec.id, num_envs=1, seed=[seed], num_threads=1, **options
        )
        self.first = self._pool.reset()[0][0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        observation, reward, terminated, truncated, _ = self._pool.step(np.array([action]))
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0])

    def restart(self) -> Any:
        return self.step(0)[0]  # EnvPool resets in the step after an end


def play(run: Run) -> list[list[Episode]]:
    """Return the episodes of every environment, each stepped alone with the run's actions."""
    by_hand = GymnasiumByHand if run.spec is SCRIPTED else EnvPoolByHand
    actions = run.all("actions").swapaxes(0, 1)
    return [
        play_one(by_hand(run.spec, seed), own) for seed, own in zip(run.seeds, actions, strict=True)
    ]


def play_one(env: GymnasiumByHand | EnvPoolByHand, actions: NDArray[Any]) -> list[Episode]:
    episodes = [Episode(0, [env.first])]
    for row, action in enumerate(actions):
        episode = episodes[-1]
        if episode.ending:  # this row is the reset
            episodes.append(Episode(row + 1, [env.restart()]))
            continue
        observation, reward, terminated, truncated = env.step(action)
        episode.observations.append(observation)
        episode.rewards.append(reward)
        episode.ending = "terminated" if terminated else "truncated" if truncated else ""
    return episodes


@torch.no_grad()
def values_of(policy: nn.Module, episode: Episode) -> list[float]:
    return policy(torch.from_numpy(np.stack(episode.observations)), None)[1].tolist()


def reference_advantages(run: Run, episodes: list[list[Episode]]) -> NDArray[np.float64]:
    """Return the sum over (gamma lambda)^k delta_{t + k} of each transition, NaN in other rows.

    The sum goes to the end of the episode or of the rollout, whichever comes first.
    """
    num_steps = len(run.module.records[0].rollout.rewards)
    advantages = np.full(run.all("rewards").shape, np.nan)
    for n, own in enumerate(episodes):
        for k, record in enumerate(run.module.records):
            for episode in own:
                rewards = [run.spec.reward_scale * reward for reward in episode.rewards]
                # The part of the episode in this rollout: its steps from start to stop.
                start = max(k * num_steps - episode.first_row, 0)
                stop = min((k + 1) * num_steps - episode.first_row, len(rewards))
                values = values_of(record.policy, episode) if start < stop else []
                deltas = []
                for t in range(start, stop):
                    last = t == len(rewards) - 1
                    failed = last and episode.ending == "terminated"
                    timed_out = last and episode.ending == "truncated"
                    goes_on = not failed and (run.bootstrap_truncation or not timed_out)
                    following = values[t + 1] if goes_on else 0.0
                    deltas.append(rewards[t] + GAMMA * following - values[t])
                for i in range(len(deltas)):
                    advantages[episode.first_row + start + i, n] = sum(
                        (GAMMA * LAMBDA) ** j * delta for j, delta in enumerate(deltas[i:])
                    )
    return advantages


# -------------------------------------------------------------------- rows, GAE, episodes


def test_rows_are_the_episodes_and_their_resets(run: Run) -> None:
    observations, rewards = run.all("observations"), run.all("rewards")
    flags = {name: run.all(name) for name in ("terminated", "truncated")}
    valid = run.all("valid")
    for n, own in enumerate(play(run)):
        transitions = []
        for episode in own:
            for t, reward in enumerate(episode.rewards):
                row = episode.first_row + t
                transitions.append(row)
                np.testing.assert_array_equal(observations[row, n], episode.observations[t])
                assert rewards[row, n] == np.float32(reward) * run.spec.reward_scale
                last = t == len(episode.rewards) - 1
                for name, flag in flags.items():
                    assert flag[row, n] == (last and episode.ending == name)
            reset = episode.first_row + len(episode.rewards)
            if episode.ending and reset < len(rewards):  # it shows the final observation
                np.testing.assert_array_equal(observations[reset, n], episode.observations[-1])
        assert np.flatnonzero(valid[:, n]).tolist() == transitions


def test_gae_equals_a_sum_over_each_episode(run: Run) -> None:
    expected = reference_advantages(run, play(run))
    by_iteration = np.split(expected, len(run.module.records))
    for record, reference in zip(run.module.records, by_iteration, strict=True):
        (minibatch,) = record.minibatches
        valid = record.rollout.valid.numpy()
        np.testing.assert_array_equal(valid, ~np.isnan(reference))
        advantages, returns, old_values, weights = (
            getattr(minibatch, name).view(valid.shape).numpy()
            for name in ("advantages", "returns", "old_values", "weights")
        )
        np.testing.assert_allclose(advantages[valid], reference[valid], atol=1e-6, rtol=0)
        targets = reference + old_values
        np.testing.assert_allclose(returns[valid], targets[valid], atol=1e-6, rtol=0)
        np.testing.assert_allclose(weights, valid / valid.sum(), atol=1e-9)


def test_the_runs_hold_every_case_of_an_end(run: Run) -> None:
    rollouts = [record.rollout for record in run.module.records]
    assert any(r.terminated[:-1].any() for r in rollouts)
    assert any(r.truncated[:-1].any() for r in rollouts)
    assert any(not r.valid[1:].all() for r in rollouts)
    if run.spec is SCRIPTED:
        assert any(r.terminated[-1].any() for r in rollouts[:-1])
        assert any(r.truncated[-1].any() for r in rollouts[:-1])
        assert any(not r.valid[0].all() for r in rollouts)  # the reset of an end in the last row
        assert any(not r.valid[-1].all() for r in rollouts)
        cut = [r.valid[-1] & ~r.terminated[-1] & ~r.truncated[-1] for r in rollouts]
        assert any(row.any() for row in cut)


def test_episode_statistics_are_of_whole_unscaled_episodes(run: Run) -> None:
    returns, lengths = np.full((2, *run.all("rewards").shape), np.nan)
    for n, own in enumerate(play(run)):
        for episode in own:
            if episode.ending:
                last = episode.first_row + len(episode.rewards) - 1
                returns[last, n] = sum(episode.rewards)
                lengths[last, n] = len(episode.rewards)
    np.testing.assert_allclose(run.all("episode_returns"), returns, atol=1e-6)
    np.testing.assert_array_equal(run.all("episode_lengths"), lengths)

    ended = np.argwhere(~np.isnan(returns))  # in the order of time, then of environments
    assert run.module.counters.episodes == run.module.metrics["episodes"] == len(ended)
    assert run.spec is not SCRIPTED or len(ended) > 100
    last = [tuple(where) for where in ended[-100:]]
    for name, values in (("episode_return_mean", returns), ("episode_length_mean", lengths)):
        expected = sum(values[where] for where in last) / len(last)
        assert run.module.metrics[name] == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------- on-policy


def test_every_rollout_is_of_the_policy_that_learns_from_it(run: Run) -> None:
    records = run.module.records
    for updates, record in enumerate(records):
        rollout = record.rollout
        assert rollout.policy_version == updates == record.counters.iterations
        with torch.no_grad():
            values = [record.policy(row, None)[1] for row in rollout.observations]
        torch.testing.assert_close(rollout.values[:-1], torch.stack(values), atol=1e-6, rtol=0)
    for before, after in pairwise(records):
        observations = after.rollout.observations[0]
        stale = before.policy(observations, None)[1] - after.policy(observations, None)[1]
        assert stale.abs().max() > 1e-3  # or the check above could not tell


class Unsized(IterableDataset[Rollout]):
    """Rollouts of which nobody knows how many there will be."""

    def __init__(self, rollouts: RolloutDataset) -> None:
        self.rollouts = rollouts

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self.rollouts)


class PrefetchedDataModule(RolloutDataModule):
    def train_dataloader(self) -> Any:
        return Unsized(super().train_dataloader())


def count_collected(data: RolloutDataModule, **options: Any) -> tuple[RecordingPPO, int]:
    module = RecordingPPO(MlpPolicy, minibatch_size=8, update_epochs=1, **options)
    collect = RolloutDataset.collect
    with patch.object(RolloutDataset, "collect", autospec=True, side_effect=collect) as collected:
        fit(module, data)
    return module, collected.call_count


def test_no_rollout_is_collected_in_vain() -> None:
    data = RolloutDataModule(SCRIPTED, num_envs=2, num_steps=8, total_iterations=5)
    module, collected = count_collected(data)
    assert len(module.records) == collected == 5


def test_prefetched_rollouts_are_refused() -> None:
    data = PrefetchedDataModule(SCRIPTED, num_envs=2, num_steps=8, total_iterations=5)
    with pytest.raises(RuntimeError, match="after 0 updates, the policy has had 1"):
        count_collected(data)


class RatioPPO(RecordingPPO):
    """Keeps the probability ratios of each iteration's first minibatch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.first_ratios: list[Tensor] = []

    def loss(self, batch: Minibatch) -> Tensor:
        if not self.records[-1].minibatches:
            log_probs = self.distribution.log_prob(self.outputs(batch)[0], batch.actions)
            self.first_ratios.append((log_probs - batch.old_log_probs).exp().detach())
        return super().loss(batch)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_first_ratio_is_one_after_the_normalizer_has_changed(env_id: str) -> None:
    module = RatioPPO(MlpPolicy, minibatch_size=32, update_epochs=4, learning_rate=3e-3)
    data = RolloutDataModule(env_id, num_envs=4, num_steps=64, total_iterations=3)
    fit(module, data)
    assert len(module.first_ratios) == 3
    changed = 0.0
    for ratios, record in zip(module.first_ratios, module.records, strict=True):
        torch.testing.assert_close(ratios, torch.ones_like(ratios), atol=2e-6, rtol=0)
        first = record.minibatches[0]
        with torch.no_grad():
            acted, _, _ = record.policy(first.observations, None)
        log_probs = module.distribution.log_prob(acted, first.actions)
        changed = max(changed, (log_probs - first.old_log_probs).exp().sub(1).abs().max().item())
    assert changed > 1e-3  # the ratio to the policy that acted, before the statistics changed


# -------------------------------------------------------------------- bad observations


class NanEnv(scripted_env.ScriptedEnv):
    """Returns a NaN in the second episode of the environment with seed ``bad_seed``."""

    def __init__(self, bad_seed: int, continuous: bool) -> None:
        super().__init__()
        self._bad_seed = bad_seed
        if continuous:
            self.action_space = cast(Any, Box(-1, 1, (2,)))

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        if self._seed == self._bad_seed and self._episode == 1:
            observation = observation.copy()
            observation[2] = np.nan
        return observation, *rest


gymnasium.register("Nan-v0", entry_point=cast(Any, NanEnv))


@pytest.mark.parametrize("continuous", [False, True])  # then the action is a NaN too
def test_a_nan_observation_names_its_environment(continuous: bool) -> None:
    options = {"bad_seed": environment_seeds(0, 4)[2], "continuous": continuous}
    spec = EnvironmentSpec("Nan-v0", backend="gymnasium", options=options)
    data = RolloutDataModule(spec, num_envs=4, num_steps=32, total_iterations=2)
    module = RecordingPPO(MlpPolicy, minibatch_size=32)
    with pytest.raises(SimulationError, match=r"environment 2 .*observation.*nan"):
        fit(module, data)
    assert not module.records


class StillSimulator(Simulator):
    """Nothing ever happens in it."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.pools = num_envs, [slice(0, num_envs)]
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-1, 1, (3,), np.float32)

    def reset(self) -> NDArray[Any]:
        return np.zeros((self.num_envs, 2), np.float32)

    def send(self, action: NDArray[Any], pool: int) -> None:
        pass

    def receive(self, observation: NDArray[Any], pool: int) -> RawStep:
        observation[...] = 0
        return ()

    def ended(self, step: RawStep) -> NDArray[np.bool_]:
        return np.zeros(self.num_envs, np.bool_)

    def settle(self, steps: Sequence[RawStep], observations: NDArray[Any]) -> Step:
        nothing = np.zeros((len(observations), self.num_envs), np.float32)
        no = nothing > 0
        return Step(observations, nothing, no, no, ~no, nothing, no)

    def check_observations(self, observations: NDArray[Any]) -> None:
        pass

    def close(self) -> None:
        pass


class NoiseActor:
    """Acts with the noise itself and keeps it."""

    def __init__(self, iterations: int = 0) -> None:
        self.distribution: Distribution = DiagonalGaussian(3)
        self.counters = Counters(iterations=iterations)
        self.device = torch.device("cpu")
        self.observation_normalizer: StepNormalizer | None = None
        self.wrapper_states: list[dict[str, Any]] = []

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 0)

    def acting(
        self, observations: Tensor, noise: Tensor, pools: Sequence[slice], *memory: Tensor
    ) -> Acting:
        def act(observations: Tensor, noise: Tensor) -> ActionOutputs:
            zeros = torch.zeros(len(observations), 6)
            return ActionOutputs(noise, zeros, zeros[:, 0], None)

        return ModuleActing(act, observations, noise, self.device, pools)


# -------------------------------------------------------------------- noise and orders


def noise_of(iteration: int, seed: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Return the action noise ``[T, N / ranks, 3]`` of one rank."""
    num_envs = 8
    here = {
        "world_size": lambda: ranks,
        "rank": lambda: rank,
        "all_max": lambda value, device: value,
    }
    with patch.multiple(distributed, **here):
        dataset = RolloutDataset(
            lambda: StillSimulator(num_envs // ranks),
            NoiseActor(iteration),
            Budget(total_iterations=100),
            num_envs=num_envs,
            num_steps=5,
            seed=seed,
        )
        return dataset.collect().actions


def order_of(iteration: int, seed: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Return one rank's rows of all minibatches, ``[epochs + 1, W / ranks, M, B / W]``."""
    sizes = Sizes.create(
        num_envs=8, num_steps=5, minibatch_size=16, mpi_workers=4, epochs=2, devices=ranks
    )
    module = PPO(MlpPolicy, minibatch_size=16, update_epochs=2, mpi_workers=4, seed=seed)
    module.counters.iterations = iteration
    with patch.multiple(distributed, world_size=lambda: ranks, rank=lambda: rank):
        return module.minibatch_order(sizes)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("draw", [noise_of, order_of])
def test_ranks_share_what_one_would_draw(draw: Any, ranks: int) -> None:
    parts = [draw(3, 7, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts, 1), draw(3, 7))


@pytest.mark.parametrize("draw", [noise_of, order_of])
def test_draws_differ_between_iterations_and_seeds(draw: Any) -> None:
    drawn = {key: draw(*key) for key in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0))}
    for key, tensor in drawn.items():
        assert torch.equal(tensor, draw(*key))
        same = [other for other in drawn if torch.equal(tensor, drawn[other])]
        assert same == [key]


def test_noise_is_fresh_for_every_step_and_environment() -> None:
    noise = noise_of(0, 0)
    assert noise.shape == (5, 8, 3)
    assert noise.unique().numel() == noise.numel()


def test_orders_shuffle_each_workers_rows_without_repetition() -> None:
    order = order_of(0, 0)
    assert order.shape == (3, 4, 2, 4)  # 8 of a worker's 10 rows, the rest is dropped
    flat = order.flatten(2)
    for rows in flat.flatten(0, 1).tolist():
        assert len(set(rows)) == 8
        assert set(rows) <= set(range(10))
        assert rows != sorted(rows)
    assert len({tuple(rows) for rows in flat.flatten(0, 1).tolist()}) == 12


# -------------------------------------------------------------------- budgets


def iterations_until(num_episodes: int, num_envs: int, num_steps: int) -> int:
    """Return after how many rollouts the scripted environments have ended that many episodes."""
    environments = [scripted_env.expected_rows(seed) for seed in environment_seeds(0, num_envs)]
    iterations = ended = 0
    while ended < num_episodes:
        iterations += 1
        for rows in environments:
            ended += sum(row.terminated or row.truncated for row in islice(rows, num_steps))
    return iterations


@pytest.mark.parametrize("max_epochs", [-1, 1])
@pytest.mark.parametrize(
    ("budget", "used", "iterations"),
    [
        ({"total_steps": 100}, "env_steps", 7),  # 6.25 rollouts
        ({"total_steps": 96}, "env_steps", 6),
        ({"total_episodes": 20}, "episodes", iterations_until(20, 2, 8)),
        ({"total_iterations": 4}, "iterations", 4),
        ({"total_seconds": 0.6}, "seconds", None),
    ],
    ids=["steps, rounded up", "steps", "episodes", "iterations", "seconds"],
)
def test_a_budget_ends_the_run_and_drives_the_schedule(
    budget: dict[str, Any], used: str, iterations: int | None, max_epochs: int
) -> None:
    data = RolloutDataModule(SCRIPTED, num_envs=2, num_steps=8, **budget)
    module = RecordingPPO(
        MlpPolicy,
        minibatch_size=8,
        update_epochs=1,
        learning_rate=0.01,
        clip_coef=0.3,
        anneal=["learning_rate", "clip_coef"],
    )
    trainer = fit(module, data, max_epochs)

    ((total),) = budget.values()
    assert trainer.state.status == TrainerStatus.FINISHED
    assert len(module.records) == module.counters.iterations == trainer.global_step
    assert iterations is None or len(module.records) == iterations
    assert len(module.records) >= 2
    fractions = [getattr(record.counters, used) / total for record in module.records]
    assert fractions[0] == 0
    assert max(fractions) < 1 <= getattr(module.counters, used) / total
    for record, spent in zip(module.records, fractions, strict=True):
        assert record.metrics["learning_rate"] == pytest.approx(0.01 * (1 - spent), rel=1e-9)
        assert record.metrics["clip_coef"] == pytest.approx(0.3 * (1 - spent), rel=1e-9)
    optimizer = cast(torch.optim.Optimizer, module.optimizers(use_pl_optimizer=False))
    assert optimizer.param_groups[0]["lr"] == module.metrics["learning_rate"]
