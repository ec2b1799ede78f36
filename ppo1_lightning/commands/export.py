"""Write a trained policy as files: ``python -m ppo1_lightning export run=...``."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from ppo1_lightning import simulators
from ppo1_lightning.commands import config as cli
from ppo1_lightning.errors import check_flag
from ppo1_lightning.policies.spaces import name_of
from ppo1_lightning.runs.export import WRITERS, GreedyPolicy, check_installed, write
from ppo1_lightning.runs.load import load_run

log = logging.getLogger("ppo1_lightning")


def main() -> None:
    """Run the command line."""
    cli.run(export, "export")


def export(config: DictConfig) -> None:
    """Export as ``config`` says (see ``conf/export.yaml``).

    Raises:
        ConfigurationError: no such run, a policy that cannot be traced, the extra ``export`` is
            missing, or a file is in the way that is no export.
        StorageError: a file cannot be written.
    """
    check_installed()  # before a run is loaded
    trained = load_run(config.run, config.ckpt_path, trust=check_flag("trust", config.trust))
    module, environment = trained.module, trained.environment
    stem = trained.output_stem(config.output, "exports", list(WRITERS))
    adapters = simulators.make_adapters(environment)
    policy = GreedyPolicy(module.whole_policy, module.distribution, *adapters)
    origin = {"environment": environment.id, "checkpoint": trained.checkpoint_path.name}
    paths = write(policy, stem, {**origin, "env_steps": module.counters.env_steps})
    for name, space in policy.inputs.items():
        log.info("input %s: batch of %s", name, name_of(space))
    log.info("output %s: batch of %s", policy.output_name, name_of(policy.output))
    if policy.state_name:
        log.info("output next_%s: for the next step", policy.state_name)
        log.info("input %s: all zeros where an episode begins", policy.state_name)
    for path in paths:
        log.info("%s", path)
