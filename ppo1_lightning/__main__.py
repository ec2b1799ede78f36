"""``python -m ppo1_lightning env=pong``."""

from __future__ import annotations

from ppo1_lightning.process import spin_briefly


def main() -> None:
    """Train, see ``train.py``."""
    spin_briefly()
    from ppo1_lightning.train import main  # and with it PyTorch

    main()


if __name__ == "__main__":
    main()
