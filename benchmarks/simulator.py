"""The floors of a case: EnvPool alone with random actions, or with ``--policy`` our rollouts.

``python -m benchmarks.simulator halfcheetah_8x256 [--policy] [key=value ...]``
"""

from __future__ import annotations

import os
from typing import Any

import envpool
import numpy as np
from hydra.utils import instantiate

from benchmarks.bare import Bare, compose_case
from benchmarks.cases import CASES
from benchmarks.measure import Measurement, emit, parse_case
from ppo1_lightning.simulators import EnvironmentSpec
from ppo1_lightning.simulators.envpool import threads_that_help


def measure_pool(case: str, seconds: float, overrides: list[str]) -> dict[str, Any]:
    """Step EnvPool itself with random actions, with as many threads as our simulator takes."""
    config = compose_case(case, overrides)
    spec: EnvironmentSpec = instantiate(config.env, _convert_="all")
    num_envs, num_steps = config.num_envs, config.num_steps
    cores = len(os.sched_getaffinity(0))
    threads = spec.num_threads or threads_that_help(spec.id, num_envs, cores)
    pool: Any = envpool.make_gymnasium(
        spec.id, num_envs=num_envs, num_threads=threads, **spec.options
    )
    pool.action_space.seed(0)
    actions = np.stack([[pool.action_space.sample() for _ in range(num_envs)] for _ in range(64)])
    pool.reset()
    measurement = Measurement(seconds)
    measurement.begin()
    steps, enough = 0, False
    while not enough:
        for t in range(num_steps):
            pool.step(actions[t % len(actions)])
        steps += num_envs * num_steps
        enough = measurement.tick(steps)
    return measurement.result(versions={"envpool": envpool.__version__})


def main() -> None:
    parser = parse_case(list(CASES), __doc__)
    parser.add_argument("--policy", action="store_true", help="our rollouts, without learning")
    parser.add_argument("overrides", nargs="*", help="further arguments of our command line")
    arguments = parser.parse_intermixed_args()
    if arguments.policy:
        bare = Bare(arguments.case, arguments.overrides)
        emit(bare.run(arguments.seconds, learn=False))
    else:
        emit(measure_pool(arguments.case, arguments.seconds, arguments.overrides))


if __name__ == "__main__":
    main()
