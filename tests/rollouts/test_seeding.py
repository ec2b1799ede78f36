"""Random streams of different purposes, runs and resumptions do not meet."""

import itertools
import threading

import pytest
import torch

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.seeding import (
    MAX_ENVS,
    apart,
    derive_seed,
    environment_seeds,
    generator,
)

RUN_SEEDS = [*range(40), 1000, 4095, 4096, 65535, 131070, 131071]
PURPOSES = ("training", "evaluation")


def test_threads_do_not_draw_from_one_generator_at_a_time() -> None:
    found: list[float] = []

    def draw(seed: int) -> None:
        with apart(seed):
            found.append(torch.rand(1).item())

    with apart(0):
        other = threading.Thread(target=draw, args=(1,))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        draw(2)  # the same thread may
        found.append(torch.rand(1).item())
    other.join()
    expected = [torch.rand(1, generator=torch.manual_seed(seed)).item() for seed in (2, 0, 1)]
    assert found == expected


def test_environment_seeds_of_all_runs_and_purposes_are_disjoint():
    blocks = [
        environment_seeds(seed, 300, purpose=purpose)
        for seed, purpose in itertools.product(RUN_SEEDS, PURPOSES)
    ]
    everything = list(itertools.chain(*blocks))
    assert len(set(everything)) == len(everything)
    assert min(everything) >= 0
    assert max(everything) < 2**31


def test_largest_runs_of_neighbouring_seeds_are_disjoint():
    first, second = environment_seeds(7, MAX_ENVS), environment_seeds(8, MAX_ENVS)
    evaluation = environment_seeds(7, MAX_ENVS, purpose="evaluation")
    assert len({*first, *second, *evaluation}) == 3 * MAX_ENVS


def test_resumed_runs_start_from_states_no_first_start_uses():
    first = {
        s for seed in RUN_SEEDS for p in PURPOSES for s in environment_seeds(seed, 8, purpose=p)
    }
    for seed, purpose in itertools.product(RUN_SEEDS[:8], PURPOSES):
        blocks = [
            environment_seeds(seed, 8, purpose=purpose, iteration=iteration)
            for iteration in (1, 2, 3, 100, 12345)
        ]
        resumed = list(itertools.chain(*blocks))
        assert len(set(resumed)) == len(resumed)
        assert first.isdisjoint(resumed)
        assert max(resumed) < 2**31


def test_resumed_runs_never_use_a_seed_twice():
    """However many resumptions (with exact_resume, every checkpoint is one)."""
    for seed in (0, 1, 12345):
        starts = [environment_seeds(seed, 1, iteration=i)[0] for i in range(1, 20_000)]
        assert len(set(starts)) == len(starts)
        assert min(starts) > environment_seeds(131071, MAX_ENVS)[-1]


def test_a_rank_takes_its_slice_of_the_same_seeds():
    whole = environment_seeds(3, 8)
    assert whole[:4] + whole[4:] == environment_seeds(3, 8)
    assert environment_seeds(3, 4) == whole[:4]


def test_seeds_far_outside_the_table_still_fit_int32():
    for seed in (-1, 131072, 2**40, 2**63):
        seeds = environment_seeds(seed, 4)
        assert all(0 <= s < 2**31 for s in seeds)


def test_too_many_environments_are_refused():
    with pytest.raises(ConfigurationError, match=f"at most {MAX_ENVS}"):
        environment_seeds(0, MAX_ENVS + 1)


def test_streams_are_reproducible_and_differ_in_every_part_of_the_key():
    keys = [(0, "actions", 1), (1, "actions", 0), (0, "permutation", 1), (0, "actions", 2)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [derive_seed(*key) for key in keys]
    again = [torch.rand(3, generator=generator(0, "actions", 1)) for _ in range(2)]
    assert torch.equal(*again)
