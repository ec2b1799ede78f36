# pyright: reportMissingImports=false, reportCallIssue=false
"""SBX's PPO, Stable-Baselines3 in JAX: ``python -m benchmarks.peers.sbx CASE``.

In its virtual environment, see `benchmarks.setup_peers`. Its own defaults with the sizes of the
case; JAX compiles during the warm-up.
"""

from __future__ import annotations

from importlib import metadata

import jax
from sbx import PPO

from benchmarks.measure import Measurement, emit, parse_case
from benchmarks.peers.sb3 import CASES, Clock

MLPS = ("halfcheetah_8x256", "halfcheetah_1x2048", "cartpole")


def main() -> None:
    arguments = parse_case([*MLPS], __doc__, by_steps=True).parse_args()
    case, measurement = CASES[arguments.case], Measurement(arguments.seconds, steps=arguments.steps)
    model = PPO("MlpPolicy", case.make(), seed=0, **case.options)
    model.learn(10**9, callback=Clock(measurement))
    states = model.policy.actor_state, model.policy.vf_state
    sizes = [leaf.size for state in states for leaf in jax.tree.leaves(state.params)]
    versions = {name: metadata.version(name) for name in ("sbx-rl", "jax", "stable-baselines3")}
    emit(measurement.result(parameters=sum(sizes), versions=versions))


if __name__ == "__main__":
    main()
