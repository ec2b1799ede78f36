"""The command line: ``python -m ppo1_lightning env=pong``, or ``... evaluate run=DIR``.

The first word may name a command; without one it is ``train``.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from ppo1_lightning.commands.process import (
    imported,
    outlive_readers,
    refuse,
    refuse_in_one_line,
    spin_briefly,
)
from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.system import exit_status

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = ("train", "tune", "evaluate", "record", "play", "export", "report", "envs")


def main() -> None:
    """Run the command that the first word names."""
    spin_briefly()
    refuse_in_one_line()
    try:
        with outlive_readers():
            _run()
    except KeyboardInterrupt:  # of who knows what he did
        sys.exit(exit_status(signal.SIGINT))


def _run() -> None:
    words = sys.argv[1:]
    command = "train"
    if words and words[0].isidentifier():  # no override: those have a "=" or begin with a sign
        command = words[0]
        del sys.argv[1]
    try:
        check_choice("command", command, COMMANDS)
    except ConfigurationError as error:
        refuse(str(error))
    if command == "train":
        imported("config").run(train_or_search, "train")
    else:
        imported(command).main()


def train_or_search(config: DictConfig) -> float | None:
    """Train as ``config`` says, or search for it to say so: ``hparams_search=optuna``."""
    if config.get("hparams_search") is None:
        return imported("train").train(config)
    return imported("tune").tune(config)  # which needs the extra `sweep`


def old_form(command: str) -> None:
    """Run ``python -m ppo1_lightning.COMMAND``, as it was called in 0.1."""
    print(
        f"python -m ppo1_lightning.{command} is now python -m ppo1_lightning {command}; "
        "the old form goes with the next release",
        file=sys.stderr,
    )
    sys.argv.insert(1, command)
    main()


if __name__ == "__main__":
    main()
