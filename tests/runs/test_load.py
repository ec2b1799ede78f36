"""What `load_run` gives back is what was trained, and only the run's folder says what to import."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import train_tiny

from ppo1_lightning import PPO, ConfigurationError
from ppo1_lightning.runs.load import load_run

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(
        tmp_path_factory.mktemp("runs") / "hopper", "env=hopper", "env.reward_scale=2"
    )


def test_module_and_environment_are_those_of_the_run(run: Path) -> None:
    trained = load_run(run)
    assert trained.environment.id == "Hopper-v4"
    assert trained.environment.reward_scale == 2
    assert trained.config.total_iterations == 3
    assert trained.checkpoint_path == run / "checkpoints" / "last.ckpt"
    assert trained.module.counters.env_steps == 192
    assert not trained.module.training
    reference = PPO.load_from_checkpoint(trained.checkpoint_path)
    observations = torch.randn(5, 11)
    for ours, theirs in zip(
        trained.module(observations)[:2], reference(observations)[:2], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_checkpoint_finds_its_run_and_a_moved_run_its_checkpoint(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    assert load_run(moved).checkpoint_path.is_relative_to(moved)
    best = moved / "checkpoints" / "best.ckpt"
    assert load_run(ckpt_path=best).folder == moved
    alone = shutil.copy(best, tmp_path / "alone.ckpt")
    with pytest.raises(ConfigurationError, match="lies in no run's folder: add run=FOLDER"):
        load_run(ckpt_path=alone)
    assert load_run(moved, alone).module.counters.env_steps > 0


def test_outputs_are_files_of_the_run_or_as_the_user_names_them(run: Path, tmp_path: Path) -> None:
    trained = load_run(run)
    endings = ("mp4", "gif")
    assert trained.output_stem(None, "videos", endings) == run / "videos" / "last_192"
    for output in (f"{tmp_path}/seed.1", f"{tmp_path}/seed.1.gif"):
        assert trained.output_stem(output, "videos", endings) == tmp_path / "seed.1"
    for output in ("", ".", str(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"is a folder.* output=.*last_192$"):
            trained.output_stem(output, "videos", endings)
    for output in (7, ["a"], "a\0"):
        with pytest.raises(ConfigurationError, match=r"output=.* is not the path of"):
            trained.output_stem(output, "videos", endings)  # type: ignore[arg-type]


def test_what_is_no_run_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected run=FOLDER or ckpt_path=FILE"):
        load_run()
    with pytest.raises(ConfigurationError, match="is not a folder"):
        load_run(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="is not the folder of a run"):
        load_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ckpt_path=\[1\] is not the path"):
        load_run(ckpt_path=[1])  # type: ignore[arg-type]
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.ckpt"))
    with pytest.raises(ConfigurationError, match=r"holds no checkpoint, expected .*last\.ckpt"):
        load_run(copy)
    (copy / ".hydra" / "resolved.yaml").write_text("a: [1")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_run(copy)


def test_checkpoint_of_another_environment_is_refused(run: Path, tmp_path: Path) -> None:
    other = train_tiny(tmp_path / "cartpole", "env=cartpole")
    with pytest.raises(ConfigurationError, match="from another environment"):
        load_run(run, other / "checkpoints" / "last.ckpt")
