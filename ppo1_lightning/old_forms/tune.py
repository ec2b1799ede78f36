"""``python -m ppo1_lightning.tune``: where the command was in 0.1."""

from ppo1_lightning.__main__ import old_form

if __name__ == "__main__":
    old_form("tune")
