"""Every random stream, derived from (run seed, purpose, iteration): no hidden state anywhere.

One and N devices draw the same numbers because each draw covers all environments and a rank
takes its slice; a resumed run needs no generator state because the iteration is in the key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch

from ppo1_lightning.errors import ConfigurationError, check_integer

_log = logging.getLogger(__name__)

_DRAWING = threading.RLock()

EnvironmentPurpose = Literal["training", "evaluation"]

MAX_ENVS = 4096
"""Most environments of one run: the width of the seed range that a run owns."""

_BLOCKS = 2**31 // MAX_ENVS  # EnvPool takes int32 seeds
_FRESH_BLOCKS = _BLOCKS // 2


def chosen_seed(seed: int | None) -> int:
    """Return the seed of a run: the one given, else that of `lightning.seed_everything`, else 0."""
    if seed is None and (everything := os.environ.get("PL_GLOBAL_SEED")) is not None:
        _log.info("seed %s, of seed_everything", everything)
        seed = int(everything)
    return check_integer("seed", 0 if seed is None else seed, at_least=0)


@contextmanager
def apart(seed: int | None = None) -> Generator[None]:
    """Give the process's generator back as it was, seeded meanwhile; one thread at a time.

    Two runs in threads would else draw each other's initial weights.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def derive_seed(seed: int, purpose: str, *key: int) -> int:
    """Hash (seed, purpose, key...) to an integer in [0, 2**63).

    A hash rather than ``seed + iteration``, so that runs with neighbouring seeds share no stream.
    """
    text = "/".join([str(seed), purpose, *map(str, key)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % 2**63


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """Return a CPU generator for the stream named by (seed, purpose, key...)."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *key))


def environment_seeds(
    seed: int, num_envs: int, *, purpose: EnvironmentPurpose = "training", iteration: int = 0
) -> list[int]:
    """Return one int32 seed for each of a run's ``num_envs`` environments, all ranks together.

    A run owns a block of `MAX_ENVS` consecutive seeds. Blocks of different run seeds below 131072
    and of training and evaluation are disjoint. A run resumed at ``iteration`` > 0 gets another
    block, drawn by hash from a range apart, so that it does not start from the same states again.

    Raises:
        ConfigurationError: more than `MAX_ENVS` environments.
    """
    if num_envs > MAX_ENVS:
        raise ConfigurationError(f"num_envs={num_envs} is too many, expected at most {MAX_ENVS}")
    block = 2 * seed + (purpose == "evaluation")
    if not 0 <= block < _FRESH_BLOCKS:
        block = derive_seed(seed, purpose) % _FRESH_BLOCKS
    if iteration > 0:
        stride = derive_seed(seed, purpose, 1) | 1  # odd: all blocks come before one comes again
        block = _FRESH_BLOCKS + (derive_seed(seed, purpose) + iteration * stride) % _FRESH_BLOCKS
    return list(range(block * MAX_ENVS, block * MAX_ENVS + num_envs))
