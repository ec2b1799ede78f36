"""What is read from folders, whatever state they are in, and how it is put into groups."""

from __future__ import annotations

import math
import ntpath
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from written_runs import write_run, write_sweep

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs.report.curves import curve_of, sample_efficiency
from ppo1_lightning.runs.report.groups import differences, make_groups, shared, swept_keys
from ppo1_lightning.runs.report.runs import common_folder, find_runs, read_metrics, read_run


def test_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", seed=7, speed=50))
    assert (run.env, run.seed, run.name, run.share) == ("CartPole-v1", "7", "run", 1.0)
    assert run.steps.tolist() == list(range(100, 2001, 100))
    assert run.seconds[-1] == pytest.approx(2000 / 50)
    assert (run.score, run.speed) == (27, 50)
    assert run.choices == {"algo": "classic"}


def test_runs_on_two_drives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows has them."""
    monkeypatch.setattr("os.path.commonpath", ntpath.commonpath)
    folders: list[Any] = [PureWindowsPath("C:/runs/a"), PureWindowsPath("D:/runs/b")]
    with pytest.raises(ConfigurationError, match="are on several drives, expected one"):
        common_folder(folders)
    assert str(common_folder([folders[0], folders[0] / "b"])).endswith("a")


def test_an_unfinished_run(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path, rows=5, budget=20)).share == 0.25


@pytest.mark.parametrize(
    ("budget", "share"),
    [
        ("total_steps: 2000", 1),
        ("total_steps: 1900", 1),  # the last iteration went beyond it
        ("total_steps: 2900", 2000 / 2900),  # killed in its last iteration
        ("total_seconds: 10.4", 1),  # the clock runs between iterations too
        ("total_seconds: 15.1", 10 / 15.1),
    ],
)
def test_a_run_ends_with_its_budget(tmp_path: Path, budget: str, share: float) -> None:
    write_run(tmp_path)
    text = "env_steps,iteration,steps_per_second\n1000,10,200\n2000,20,200\n"
    (tmp_path / "csv" / "metrics.csv").write_text(text)
    (tmp_path / ".hydra" / "resolved.yaml").write_text(budget)
    assert read_run(tmp_path).share == pytest.approx(share)


@pytest.mark.parametrize("steps", [-5, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("budget", ["0", "-1", "1e-300", "1e300", f"1{'0' * 90}", ".nan", "[1]"])
def test_a_status_for_any_numbers(tmp_path: Path, budget: str, steps: float) -> None:
    write_run(tmp_path)
    (tmp_path / "csv" / "metrics.csv").write_text(f"env_steps,iteration\n{steps},1\n")
    (tmp_path / ".hydra" / "resolved.yaml").write_text(f"total_steps: {budget}")
    status = read_run(tmp_path).status
    assert re.fullmatch(r"finished|unknown|\d+ % done", status)
    if budget in ("0", "-1", ".nan", "[1]"):
        assert status == "unknown"


@pytest.mark.parametrize("key", ["total_seconds", "total_episodes"])
def test_a_status_without_what_it_is_of(tmp_path: Path, key: str) -> None:
    write_run(tmp_path)
    (tmp_path / "csv" / "metrics.csv").write_text("env_steps,iteration\n1000,1\n2000,2\n")
    (tmp_path / ".hydra" / "resolved.yaml").write_text(f"{key}: 10")
    assert read_run(tmp_path).status == "unknown"


def test_digits_that_are_no_number(tmp_path: Path) -> None:
    """Those that Python calls digits, and takes for none."""
    for name in ("\u00b2", "10", "2"):
        write_run(tmp_path / name)
    assert [run.name for run in find_runs([tmp_path])] == ["2", "10", "\u00b2"]


@pytest.mark.parametrize(
    ("text", "steps", "returns"),
    [
        ("", [], []),
        ("env_steps,episode_return_mean\n", [], []),
        ("env_steps,episode_return_mean\n1,2.5\n2,3", [1, 2], [2.5, 3]),
        ("env_steps,episode_return_mean\n1,2.5\n2", [1], [2.5]),  # cut short
        ("env_steps,episode_return_mean\n1,nan\n,4\n2,?\n3,\n", [1, 2, 3], [math.nan] * 3),
        # continued from step 2
        ("env_steps,episode_return_mean\n1,1\n2,2\n3,3\n2,20\n3,30\n", [1, 2, 3], [1, 20, 30]),
        # an evaluation has a row of its own at the same step
        ("env_steps,episode_return_mean,e\n1,1,\n1,,9\n2,2,\n", [1, 2], [1, 2]),
        ("env_steps,kl\n1,1\n", [1], [math.nan]),
    ],
)
def test_rows_in_any_state(
    tmp_path: Path, text: str, steps: list[float], returns: list[float]
) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text(text)
    run = read_run(tmp_path)
    assert run.steps.tolist() == steps
    np.testing.assert_equal(run.column("episode_return_mean"), returns)
    assert np.isnan(run.seconds).all()
    assert math.isnan(run.share)
    assert run.env == "unknown environment"


def test_evaluations_join_their_row(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("env_steps,a,evaluation/return_mean\n1,5,\n1,,9\n")
    assert {k: v.tolist() for k, v in read_metrics(file).items()} == {
        "env_steps": [1],
        "a": [5],
        "evaluation/return_mean": [9],
    }


def test_runs_are_found_once_and_in_order(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", seeds=6)
    runs = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "3"])
    assert [run.name for run in runs] == [str(job) for job in range(12)]
    names = [f"clip=0.{clip}" for clip in range(1, 9)]
    for name in names[::-1]:
        write_run(tmp_path / "named" / name, rows=1)
    assert [run.name for run in find_runs([tmp_path / "named"])] == names
    assert [run.name for run in find_runs([tmp_path / "sweep" / "3"])] == ["3"]


def test_folders_without_runs_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder"):
        find_runs([tmp_path / "nothing"])
    # in /proc there are folders that not even root can look into
    with pytest.raises(ConfigurationError, match="no run in"):
        find_runs([Path("/proc/self")])
    with pytest.raises(ConfigurationError, match=r"no run in .*, expected folders with csv"):
        find_runs([tmp_path])
    write_run(tmp_path / "begun", rows=0)
    with pytest.raises(ConfigurationError, match="has a row of metrics yet"):
        find_runs([tmp_path])


def test_seeds_share_a_group(tmp_path: Path) -> None:
    runs = find_runs([write_sweep(tmp_path, clips=(0.2, 0.1, 0.05))])
    assert swept_keys(runs) == ["algo.clip_coef"]
    groups = make_groups(runs)
    assert [group.label for group in groups] == [f"clip_coef {c}" for c in (0.05, 0.1, 0.2)]
    assert [group.colour for group in groups] == [0, 1, 2]
    assert [{run.seed for run in group.runs} for group in groups] == [{"1", "2", "3"}] * 3
    assert differences(runs) == {"algo.clip_coef": ["0.2"] * 3 + ["0.1"] * 3 + ["0.05"] * 3}
    assert shared(runs) == {"env.id": "CartPole-v1", "total_steps": "2000", "algo.gamma": "0.99"}


def test_what_an_environment_asks_for_makes_no_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", env="A-v0", seed=seed, clip_coef=0.1)
        write_run(tmp_path / f"b{seed}", env="B-v0", seed=seed, clip_coef=0.2)
    (group,) = make_groups(find_runs([tmp_path]))
    assert group.label == "all runs"
    assert [run.name for run in group.of("B-v0")] == ["b1", "b2"]


def test_keys_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        run = write_run(tmp_path / folder)
        words = [f"algo.num={number}", f"policy.num={number}"]
        OmegaConf.save(OmegaConf.create(words), run / ".hydra" / "overrides.yaml")
        values = {"algo": {"num": number}, "policy": {"num": number}}
        OmegaConf.save(OmegaConf.create(values), run / ".hydra" / "resolved.yaml")
    labels = [group.label for group in make_groups(find_runs([tmp_path]))]
    assert labels == ["algo.num 0, policy.num 0", "algo.num 1, policy.num 1"]


def test_what_makes_an_object_is_a_call_of_it(tmp_path: Path) -> None:
    wrapper: dict[str, Any] = {"_target_": "a.b.Stack", "_partial_": True, "size": 4}
    for folder, wrappers in {"a": [wrapper, {"_target_": "Flat"}], "b": [{"x": 1}]}.items():
        run = write_run(tmp_path / folder)
        OmegaConf.save(OmegaConf.create(["env.wrappers=w"]), run / ".hydra" / "overrides.yaml")
        config = {"env": {"wrappers": wrappers}}
        OmegaConf.save(OmegaConf.create(config), run / ".hydra" / "resolved.yaml")
    labels = [group.label for group in make_groups(find_runs([tmp_path]))]
    assert labels == ["wrappers [Stack(4), Flat()]", "wrappers [{'x': 1}]"]


def test_only_the_best_of_many_groups_have_a_colour(tmp_path: Path) -> None:
    clips = tuple(round(0.01 * i, 2) for i in range(1, 13))
    groups = make_groups(find_runs([write_sweep(tmp_path, seeds=1, clips=clips)]))
    assert [g.values for g in groups if g.colour is not None] == [f"{c:.10g}" for c in clips[-5:]]
    assert {group.colour for group in groups} == {None, 0, 1, 2, 3, 4}


def test_trials_without_a_command_line_differ_by_their_config(tmp_path: Path) -> None:
    for file in write_sweep(tmp_path / "study").rglob(".hydra/overrides.yaml"):
        file.unlink()
    assert swept_keys(find_runs([tmp_path])) == ["algo.clip_coef"]
    write_run(tmp_path / "with_a_command_line", clip_coef=0.1)
    assert swept_keys(find_runs([tmp_path])) == ["algo.clip_coef"]


@pytest.mark.parametrize("text", ["- a", "env: text", "hydra: {runtime: null}", "[", "\x00"])
def test_files_of_any_content(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "a")
    for file in (run / ".hydra").iterdir():
        file.write_text(text)
    (run / "videos").mkdir()
    (run / "videos" / "a.mp4").symlink_to("nothing")
    (tmp_path / "private").touch()
    (run / "videos" / "b.mp4").symlink_to(tmp_path / "private")
    (found,) = find_runs([tmp_path])
    assert (found.env, found.videos, found.score) == ("unknown environment", (), 21)


def test_environments_of_other_budgets_are_compared_as_far_as_all_go(tmp_path: Path) -> None:
    for env, rows in (("A-v0", 12), ("B-v0", 600)):
        for clip in (0.1, 0.2):
            folder = tmp_path / f"{env}_{clip}"
            write_run(folder, env=env, clip_coef=clip, rows=rows, budget=rows, slope=clip)
    runs = find_runs([tmp_path])
    curves = sample_efficiency(make_groups(runs), ["A-v0", "B-v0"])
    assert [curve.x.tolist() for _, curve in curves] == [[100 * row for row in range(2, 13)]] * 2


def test_only_groups_with_a_colour_have_intervals(tmp_path: Path) -> None:
    for clip in range(1, 11):
        for seed in (1, 2):
            folder = tmp_path / f"{clip}_{seed}"
            write_run(folder, clip_coef=clip / 100, seed=seed, rows=3, slope=clip)
    for group in make_groups(find_runs([tmp_path])):
        curve = curve_of(group, "CartPole-v1", "episode_return_mean", "env_steps")
        assert curve is not None
        assert np.isfinite(curve.low).any() == (group.colour is not None)
        assert np.isfinite(curve.mean).all()
