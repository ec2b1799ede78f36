"""``python -m ppo1_lightning env=pong``."""

from __future__ import annotations

from ppo1_lightning.train import main

if __name__ == "__main__":
    main()
