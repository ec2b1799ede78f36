"""What ranks that share environments have of each other's rollouts, on two real processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.sharing import gather
from tests.ranks import run_on_ranks
from tests.rollouts.test_segment import segment_of

pytestmark = pytest.mark.heavy

DTYPES = [
    *(torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]


def part_of(envs: list[int], state_dtype: torch.dtype) -> Rollout:
    """Return these of three environments' rows: two steps, numbers that tell all of them apart."""

    def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        numbers = torch.arange(6 * math.prod(shape), dtype=torch.float64)
        return numbers.view(2, 3, *shape).to(dtype)[:, envs]

    ends = rows() > 3
    return Rollout(
        observations=rows(5, dtype=torch.uint8),
        actions=rows(dtype=torch.int64),
        rewards=rows(),
        values=rows(),
        dist_params=rows(2),
        terminated=ends,
        truncated=ends,
        valid=~ends,
        episode_returns=rows(),
        episode_lengths=rows(),
        policy_version=0,
        fraction_spent=0.0,
        num_envs=3,
        states=rows(4, dtype=state_dtype),
        starts=ends,
    )


def gathered_on_rank(rank: int) -> list[bool]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    same = []
    for dtype in DTYPES:
        whole = part_of([0, 1, 2], dtype)
        own = part_of([[0, 1], [2, 0]][rank], dtype)  # the last one is a copy
        rollout, estimates = gather(own, own.values)
        same += [torch.equal(estimates, whole.values)]
        for name in ("observations", "actions", "values", "dist_params", "valid", "starts"):
            same += [torch.equal(getattr(rollout, name), getattr(whole, name))]
        assert rollout.states is not None
        assert whole.states is not None
        same += [rollout.states.dtype == dtype, rollout.states.tolist() == whole.states.tolist()]
    dist.destroy_process_group()
    return same


def test_every_rank_has_all_rows_of_whatever_dtype() -> None:
    for same in run_on_ranks(gathered_on_rank, 2):
        assert len(same) == 9 * len(DTYPES)
        assert all(same)


def shares_on_rank(rank: int) -> list[dict[float, float]]:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    segment = segment_of(torch.zeros(1, 1, 1, dtype=torch.int64))
    segment = segment._replace(valid=torch.arange(8) != 5, shared=True)
    batches = segment.whole(), segment.every(3), segment.every(8)  # 8, 4 and 2 rows
    shares = [dict(zip(b.observations.tolist(), b.weights.tolist(), strict=True)) for b in batches]
    dist.destroy_process_group()
    return shares


def test_ranks_take_their_shares_of_all_rows_once() -> None:
    pairs = list(zip(*run_on_ranks(shares_on_rank, 2), strict=True))
    for ours, theirs in pairs:
        assert not ours.keys() & theirs.keys()
        both = {row: weight for row, weight in (ours | theirs).items() if row != 5}
        assert (ours | theirs).get(5, 0.0) == 0
        assert all(weight == pytest.approx(1 / len(both)) for weight in both.values())
    assert [len(ours) for ours, _ in pairs] == [len(theirs) for _, theirs in pairs] == [4, 2, 1]
