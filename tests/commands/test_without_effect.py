"""What has no effect is told."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import hydra
import pytest

from ppo1_lightning.commands.config import config_directory, register_resolvers
from ppo1_lightning.commands.without_effect import UnknownMetrics, without_effect

pytestmark = pytest.mark.heavy

GYM = ["env=gymnasium", "env.id=CartPole-v1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["env=cartpole"], []),
        (["evaluation.episodes=5"], ["evaluation.episodes=5"]),
        (["evaluation.episodes=5", "evaluation.every_steps=100"], []),
        (["env=cartpole", "frame_stack=2"], ["frame_stack=2"]),
        (["env=pong", "frame_stack=2"], []),
        (["env=atari_gymnasium", "env.id=ALE/Pong-v5", "frame_stack=2"], []),
        (["env=cartpole", "env.num_threads=2"], []),
        ([*GYM, "env.num_threads=2"], ["env.num_threads=2"]),
        (["callbacks.checkpoint.monitor=kl"], []),
        (
            ["callbacks.checkpoint.monitor=kl", "trainer.enable_checkpointing=false"],
            ["callbacks.checkpoint.monitor=kl"],
        ),
    ],
)
def test_overrides_that_nothing_reads(words: list[str], told: list[str]) -> None:
    register_resolvers()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", words)
    lines = list(without_effect(words, config))
    assert [line.partition(" has no effect: ")[0] for line in lines] == told


def test_a_metric_that_nothing_logs(caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = SimpleNamespace(callback_metrics={"mine": 1})
    module: Any = SimpleNamespace(metrics={})
    names = ("episode_return_mean", "mine", "evaluation/return_mean", "episode_retrn_mean")
    callback = UnknownMetrics({f"key{number}": name for number, name in enumerate(names)})
    with caplog.at_level(logging.WARNING, "ppo1_lightning"):
        callback.on_train_batch_end(trainer, module, None, None, 0)
        assert not caplog.messages
        module.metrics = {"env_steps": 64, "episode_return_mean": 1.0}
        for _ in range(2):
            callback.on_train_batch_end(trainer, module, None, None, 0)
    (line,) = caplog.messages
    assert line == ("key3=episode_retrn_mean is not logged; did you mean 'episode_return_mean'?")
