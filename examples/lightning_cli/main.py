"""PPO and its data by LightningCLI: everything is an argument of the command line or a config.

    python main.py fit --config cartpole.yaml
    python main.py fit --config cartpole.yaml --optimizer RMSprop --lr_scheduler ExponentialLR \
        --lr_scheduler.gamma 0.99
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ppo1_lightning import PPO, RolloutDataModule


class CLI(LightningCLI):
    """Tells the module the spaces: ``--optimizer`` asks for its parameters before the Trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link them."""
        for i, space in enumerate(("observation_space", "action_space")):
            parser.link_arguments(
                "data", f"model.{space}", lambda data, i=i: data.spaces[i], apply_on="instantiate"
            )


if __name__ == "__main__":
    CLI(PPO, RolloutDataModule, save_config_kwargs={"overwrite": True})
