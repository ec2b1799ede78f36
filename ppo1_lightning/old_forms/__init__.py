"""``python -m ppo1_lightning.COMMAND`` as it was called in 0.1, for one release."""
