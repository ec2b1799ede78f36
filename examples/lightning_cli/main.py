"""PPO and its data by LightningCLI: everything is an argument of the command line or a config.

    python main.py fit --config cartpole.yaml
    python main.py fit --config cartpole.yaml --optimizer RMSprop --lr_scheduler ExponentialLR \
        --lr_scheduler.gamma 0.99
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningCLI

from ppo1_lightning import PPO, RolloutDataModule

if __name__ == "__main__":
    LightningCLI(PPO, RolloutDataModule, save_config_kwargs={"overwrite": True})
