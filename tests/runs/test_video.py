"""Videos show what the simulator draws, and recording leaves training as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import train_tiny

from ppo1_lightning import PPO, ConfigurationError, EnvironmentSpec, MlpPolicy
from ppo1_lightning.commands import play, record
from ppo1_lightning.errors import StorageError
from ppo1_lightning.rollouts.evaluation import Evaluation, EvaluationDataset
from ppo1_lightning.runs import video
from ppo1_lightning.simulators import make_simulator, spaces

pytestmark = pytest.mark.heavy

Pictures = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "cartpole", "env=cartpole")


def player(spec: EnvironmentSpec) -> PPO:
    observation_space, action_space = spaces(spec)
    module = PPO(MlpPolicy, observation_space=observation_space, action_space=action_space)
    module.configure_model()
    return module


def read(path: Path) -> Pictures:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def command(task: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    task.main()


@pytest.mark.slow
def test_simulators_draw_in_colour() -> None:
    """In a process of its own: without its libraries MuJoCo's renderer would end this one."""
    code = """
import json, numpy as np
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator
for env_id in ("Hopper-v4", "Pong-v5", "CartPole-v1", "LunarLander-v3"):
    simulator = make_simulator(EnvironmentSpec(env_id), [1], render=True)
    simulator.reset()
    before = simulator.render()
    simulator.action_space.seed(1)
    for _ in range(20):
        simulator.step(np.asarray([simulator.action_space.sample()]))
    after = simulator.render()
    moved, coloured = (before != after).any(), (after != after[..., :1]).any()
    colours = len(np.unique(after.reshape(-1, 3), axis=0))
    print(json.dumps([after.shape, colours, bool(moved), bool(coloured)]))
"""
    printed = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    hopper, pong, cartpole, lunarlander = map(json.loads, printed.splitlines())
    assert [found[0] for found in (hopper, pong)] == [[480, 480, 3], [210, 160, 3]]
    assert cartpole[0] == lunarlander[0] == [400, 600, 3]
    assert hopper[1] > 100
    for _, colours, moved, coloured in (hopper, pong, cartpole, lunarlander):
        assert colours >= 4
        assert (moved, coloured) == (True, True)


def test_frames_are_the_episodes_that_evaluation_plays() -> None:
    """Greedy ones, since an evaluation draws its noise for many environments and steps at once."""
    spec = EnvironmentSpec("CartPole-v1")
    module = player(spec)
    frames = list(video.play(module, spec, episodes=3, deterministic=True, seed=4))
    ends = [frame for frame in frames if frame.over]
    evaluated = EvaluationDataset(spec, Evaluation(3, 1, True), module, seed=4).play()
    assert [frame.episode_return for frame in ends] == evaluated.returns.tolist()
    assert [frame.step for frame in ends] == evaluated.lengths.tolist()
    assert [frame.episode for frame in ends] == [0, 1, 2]
    # each episode's first picture comes before its first step
    starts = [frame for frame in frames if frame.step == 0]
    assert [frame.episode_return for frame in starts] == [0.0, 0.0, 0.0]
    assert len(frames) == sum(evaluated.lengths.tolist()) + 3


def test_videos_hold_the_pictures(tmp_path: Path) -> None:
    ramp = np.arange(21, dtype=np.uint8) * 12
    pictures: Pictures = []
    for t in range(12):
        picture = np.zeros((31, 21, 3), np.uint8)  # odd sizes
        picture[..., 0], picture[..., 2] = 20 * t, ramp
        pictures.append(picture)
    mp4, gif = tmp_path / "new" / "a.mp4", tmp_path / "new" / "a.gif"
    video.write_videos(iter(pictures), mp4, gif, fps=50)
    film = read(mp4)
    assert len(film) == 12
    assert film[0].shape == (32, 22, 3)
    for picture, shown in zip(pictures, film, strict=True):
        difference = picture.astype(int) - shown[:31, :21]
        assert np.abs(difference).mean() < 12  # lossy
    with Image.open(gif) as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((22, 32), 6)  # every other one
        assert image.info["duration"] == 40  # ms: it lasts as long as the film
    assert sorted(path.name for path in mp4.parent.iterdir()) == ["a.gif", "a.mp4"]


def test_text_is_written_onto_a_copy() -> None:
    frame = video.Frame(np.zeros((210, 160, 3), np.uint8), 0, 12, 3.5, False)
    written = video.with_text(frame)
    assert written.shape == frame.picture.shape
    assert (written[-20:] > 200).any()
    assert not written[:-20].any()
    assert not frame.picture.any()


def test_record_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command(record, monkeypatch, f"run={run}", "episodes=2", "text=true")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:2]] == ["return", "return"]
    assert printed[2:] == [str(run / "videos" / f"last_192.{kind}") for kind in ("mp4", "gif")]
    steps = [int(line.split()[3]) for line in printed[:2]]
    assert len(read(Path(printed[2]))) == sum(steps) + 2


def test_sigterm_leaves_no_half_videos(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = sorted((run / "videos").glob("*")), video.with_text

    def stop_at_step_5(frame: video.Frame) -> Any:
        if frame.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(frame)

    monkeypatch.setattr(video, "with_text", stop_at_step_5)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        command(record, monkeypatch, f"run={run}", "text=true")
    assert end.value.code == 143
    assert sorted((run / "videos").glob("*")) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_file_that_cannot_be_written_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    pictures = [np.zeros((16, 16, 3), np.uint8)]
    with pytest.raises(StorageError, match=r"a\.mp4 could not be written \(.*xists\)"):
        video.write_videos(pictures, tmp_path / "file" / "a.mp4")
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(StorageError, match=r"b\.mp4 could not be written \(Is a directory\)"):
        video.write_videos(pictures, tmp_path / "b.mp4")


def test_what_cannot_be_drawn_is_told_in_one_line() -> None:
    simulator = make_simulator(EnvironmentSpec("scripted_env:Scripted-v0"), [0])
    with pytest.raises(ConfigurationError, match="Gymnasium cannot render"):
        simulator.render()
    simulator = make_simulator(EnvironmentSpec("CartPole-v1"), [0])
    with pytest.raises(ConfigurationError, match="EnvPool cannot render 'CartPole-v1'"):
        simulator.render()


def test_play_shows_episodes_in_a_window(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[Any] = []
    flip = pygame.display.flip

    def note() -> None:
        flip()
        window = pygame.display.get_surface()
        shown.append((window.get_size(), pygame.display.get_caption()[0], window.get_at((0, 0))))

    monkeypatch.setattr(pygame.display, "flip", note)
    capsys.readouterr()
    command(play, monkeypatch, f"run={run}", "episodes=1", "fps=1000")
    size, caption, colour = shown[-1]
    assert size == (1200, 800)  # CartPole's 600 x 400, enlarged
    assert colour[:3] == (255, 255, 255)
    assert caption == f"CartPole-v1: return {len(shown) - 1:.1f}, step {len(shown) - 1}"
    assert f"in {len(shown) - 1} steps" in capsys.readouterr().out


@pytest.mark.parametrize("display", [None, ":4711"])  # none, or one that does not answer
def test_play_without_a_display_says_so(
    display: str | None,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(play, monkeypatch, f"run={run}")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no display to open a window on")
    assert error.count("\n") == 1


def test_play_of_no_run_says_so_without_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(play, monkeypatch, "run=nowhere")
    assert "run=nowhere" in capsys.readouterr().err


def test_an_environment_without_pictures_says_so() -> None:
    spec = EnvironmentSpec("scripted_env:Scripted-v0")
    with pytest.raises(ConfigurationError, match=r"cannot be drawn: .* expected rgb_array among"):
        make_simulator(spec, [0], render=True)


def test_callback_records_and_leaves_training_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["env=cartpole", "algo=classic", "total_iterations=4"]
    plain = train_tiny(tmp_path / "plain", *words)
    words += ["callbacks=video", "callbacks.video.every_steps=100", "callbacks.video.max_steps=5"]
    filmed = train_tiny(tmp_path / "filmed", *words)
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"next: python -m ppo1_lightning evaluate run={filmed}" in last
    names = sorted(path.name for path in (filmed / "videos").iterdir())
    assert names == ["128.gif", "128.mp4", "256.gif", "256.mp4"]  # the first beyond 100 and 200
    assert len(read(filmed / "videos" / "128.mp4")) == 6
    events = EventAccumulator(str(filmed / "tensorboard"), size_guidance={"images": 0})
    shown = events.Reload().Images("video")
    assert [event.step for event in shown] == [128, 256]
    assert shown[0].encoded_image_string == (filmed / "videos" / "128.gif").read_bytes()
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (plain, filmed)
    )
    for name in ours.keys() - {"policy.observation_normalizer._extra_state"}:
        assert torch.equal(ours[name], theirs[name]), name
