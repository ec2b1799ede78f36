"""A run's folder is data: what it names is not called, what it links to is not read."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_runs import train_tiny

from ppo1_lightning.algorithms.plain import PlainDataIO, read_checkpoint
from ppo1_lightning.commands.config import config_directory, is_of_a_file
from ppo1_lightning.errors import ConfigurationError, StorageError
from ppo1_lightning.runs.load import load_run
from ppo1_lightning.runs.report.runs import read_metrics, read_run
from ppo1_lightning.runs.resume import find_checkpoint
from ppo1_lightning.runs.untrusted import (
    WRITTEN,
    open_inside,
    printable,
    read_config,
    read_yaml,
    refuse_ways_out,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", "env=cartpole")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(run: Path, key: str, value: Any) -> None:
    file = run / ".hydra" / "resolved.yaml"
    config = OmegaConf.load(file)
    OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, file)


CALLED: list[str] = []


def called(*arguments: Any, **named: Any) -> int:
    CALLED.append("called")
    return 64


CALL = {"_target_": "test_untrusted.called"}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("policy.hidden_size", CALL, "test_untrusted.called (policy.hidden_size._target_)"),
        ("policy._target_", "test_untrusted.called", "test_untrusted.called (policy._target_)"),
        ("algo._target_", "os.getcwd", "os.getcwd (algo._target_)"),
        ("algo.optimizer._target_", "torch.optim.swap", "torch.optim.swap"),
        ("algo.gamma", CALL, "(algo.gamma._target_)"),
        ("env.options", {"a": [CALL]}, "(env.options.a.0._target_)"),
        ("env.wrappers", [{"_target_": "gymnasium.wrappers.RecordVideo"}], "RecordVideo"),
        ("env._target_", "ppo1_lightning.runs.load.Path", "ppo1_lightning.runs.load.Path"),
    ],
)
def test_what_a_folder_names_is_not_called(run: Path, key: str, value: Any, told: str) -> None:
    change(run, key, value)
    CALLED.clear()
    with pytest.raises(ConfigurationError) as error:
        load_run(run)
    assert told in str(error.value)
    assert "trust=true" in str(error.value)
    assert not CALLED


def test_a_trusted_folder_is_built_as_it_says(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(run, "policy.hidden_size", CALL)
    CALLED.clear()
    with caplog.at_level(logging.INFO, "ppo1_lightning"):
        load_run(run, trust=True)
    assert CALLED
    assert "policy.hidden_size._target_ calls test_untrusted.called" in caplog.text


def test_a_folder_of_ones_own_loads_as_it_is(run: Path) -> None:
    assert load_run(run).environment.id == "CartPole-v1"


def test_a_module_that_comes_with_a_folder_is_not_imported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "comes_along.py").write_text("raise SystemExit('imported')")
    change(run, "env.id", "comes_along:Env-v0")
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(str(run))
    with pytest.raises(ConfigurationError, match="the module comes_along in it"):
        load_run(run)


def test_a_package_that_a_folder_lies_in_is_not_imported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(run.parents[1]))
    change(run, "env.id", f"{run.parent.name}.{run.name}.evil:Env-v0")
    with pytest.raises(ConfigurationError, match="trust=true"):
        load_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env", "x"),
        ("env", None),
        ("trainer", 3),
        ("trainer.default_root_dir", None),
        ("trainer.default_root_dir", 5),
    ],
)
def test_malformed_configs(run: Path, key: str, value: Any) -> None:
    change(run, key, value)
    with pytest.raises(ConfigurationError, match=r"is not the config|is not the path"):
        load_run(run)


def test_files_outside_of_the_folder_are_left_alone(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "victim"
    shutil.copytree(run / "checkpoints", outside)
    change(run, "callbacks.checkpoint.dirpath", str(outside))
    with pytest.raises(ConfigurationError, match="leads out of"):
        load_run(run)
    change(run, "callbacks.checkpoint.dirpath", str(run / "checkpoints"))
    (run / "exports").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="expected output=FILE"):
        load_run(run).output_stem(None, "exports", ["onnx"])
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "checkpoints" / "last.ckpt").symlink_to(outside / "last.ckpt")
    with pytest.raises(ConfigurationError, match="expected ckpt_path=FILE"):
        load_run(run)


def test_interpolations_are_not_resolved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    change(run, "env.id", "${oc.env:SECRET}")
    with pytest.raises(ConfigurationError, match="is not resolved") as error:
        load_run(run)
    assert "s3cret" not in str(error.value)


def test_the_config_of_an_ancestor_is_not_a_checkpoints(run: Path) -> None:
    deep = run / "downloads" / "a" / "checkpoints"
    shutil.copytree(run / "checkpoints", deep)
    with pytest.raises(ConfigurationError, match="lies in no run's folder"):
        load_run(ckpt_path=deep / "last.ckpt")
    assert load_run(ckpt_path=run / "checkpoints" / "last.ckpt").folder == run


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


LONG = ["seed: 0x" + "f" * 5000, "seed: 1" + "0" * 400, "seed: " + "59:" * 300 + "59"]


@pytest.mark.parametrize("content", [BOMB, *LONG, "x: [", "- 1", "\0", "a: " + "[" * 5000])
def test_a_config_that_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "resolved.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"cannot be read|is not the config") as error:
        read_config(file, tmp_path)
    assert "\n" not in str(error.value)


def test_what_lies_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("a: 1")
    inside = tmp_path / "run" / "file"
    inside.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="leads out of"):
        open_inside(inside, tmp_path / "run", 100)
    (tmp_path / "run" / "folder").symlink_to(tmp_path)
    with pytest.raises(OSError, match="leads out of"):
        read_yaml(tmp_path / "run" / "folder" / "secret", tmp_path / "run")


def test_pipes_and_large_files_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no file"):
        open_inside(tmp_path / "pipe", tmp_path, 100)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(OSError, match=r"100,000,000,000 bytes"):
        open_inside(tmp_path / "sparse", tmp_path, 2**30)


def test_a_hash_is_no_long_number(tmp_path: Path) -> None:
    for digest in ("1" + "0a" * 64, "a4" * 64, "/" + "12" * 64, "2026-11-27_" * 12):
        (tmp_path / "file.yaml").write_text(f"a: '{digest}'\nb: {digest}")
        assert read_yaml(tmp_path / "file.yaml", tmp_path) == {"a": digest, "b": digest}


def test_all_that_a_run_writes_is_looked_through(trained: Path) -> None:
    """And what its config names in its folder, as for loggers that are not installed."""
    texts = [file.read_text() for file in config_directory().rglob("*.yaml")]
    named = {name for text in texts for name in re.findall(r"default_root_dir}/([\w.]+)", text)}
    assert {"checkpoints", "study.db"} < named
    assert named | {path.name for path in trained.iterdir()} <= set(WRITTEN)


WAYS_OUT = [
    "train.log",
    "plan.txt",
    "wandb.id",
    ".hydra/config.yaml",
    "csv/metrics.csv",
    "tensorboard",
    "checkpoints",
]


@pytest.mark.parametrize("name", WAYS_OUT)
@pytest.mark.parametrize("words", [[], ["-m"]], ids=["run", "sweep"])
def test_a_run_does_not_go_on_through_a_link(
    name: str, words: list[str], tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "runs" / "0"))
    way, elsewhere = folder / name, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if way.exists():
        shutil.move(way, elsewhere / "precious")
    else:
        (elsewhere / "precious").write_text("precious")
    way.parent.mkdir(exist_ok=True)
    way.symlink_to(elsewhere / "precious")
    before = contents(elsewhere)
    place = f"hydra.sweep.dir={folder.parent}" if words else f"hydra.run.dir={folder}"
    refused = f"error: {way} leads out of {folder}"
    with pytest.raises(SystemExit) as end:
        train_tiny(folder, "env=cartpole", "resume=auto", place, *words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(refused)
    assert contents(elsewhere) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", [*WAYS_OUT[:5], "checkpoints/last.ckpt"])
def test_a_run_does_not_wait_for_a_pipe(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(SystemExit):
        train_tiny(run, "env=cartpole", "resume=auto")
    assert capsys.readouterr().err.startswith(f"error: {run / name} is no file")


def test_a_sweep_does_not_write_through_a_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra's own file of it."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").symlink_to(tmp_path / "precious")
    with pytest.raises(SystemExit):
        train_tiny(tmp_path / "run", "env=cartpole", f"hydra.sweep.dir={tmp_path}/sweep", "-m")
    assert "multirun.yaml leads out of" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "precious"


def test_links_within_a_folder_are_its_own(run: Path) -> None:
    (run / "csv" / "latest").symlink_to("metrics.csv")
    (run / "csv" / "itself").symlink_to("itself")
    refuse_ways_out(run)


def test_what_no_run_writes_may_lead_anywhere(run: Path, tmp_path: Path) -> None:
    (run / "dataset").symlink_to(tmp_path)
    os.mkfifo(run / "pipe")
    refuse_ways_out(run)


def test_a_job_that_is_a_link_is_refused(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, sweep = Path(shutil.copytree(trained, tmp_path / "other")), tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "0").symlink_to(other)
    before = contents(other)
    with pytest.raises(SystemExit):
        train_tiny(other, "env=cartpole", "resume=auto", f"hydra.sweep.dir={sweep}", "-m")
    assert capsys.readouterr().err.startswith(f"error: {sweep}/0 leads out of {sweep}")
    assert contents(other) == before


@pytest.mark.parametrize("kind", ["pipe", "link", "sparse", "field", "wide"])
def test_a_report_reads_metrics_that_are_files_of_the_run(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run" / "csv"
    folder.mkdir(parents=True)
    rows = folder / "metrics.csv"
    text = "env_steps,episode_return_mean\n64,1.0\n"
    if kind == "pipe":
        os.mkfifo(rows)
    elif kind == "link":
        (tmp_path / "other.csv").write_text(text)
        rows.symlink_to(tmp_path / "other.csv")
    elif kind == "sparse":
        with rows.open("wb") as file:
            file.truncate(10**11)
    elif kind == "wide":  # a hundred million values, if those that are left out were made
        names = ",".join(f"name_{number}" for number in range(10_000))
        rows.write_text(f"env_steps,{names}\n" + "64\n" * 10_000)
    else:
        rows.write_text(text + "128," + "9" * 200_000 + "\n")
    steps = read_run(tmp_path / "run").steps.tolist()
    assert steps in ([], [64.0])
    assert len(read_metrics(rows, tmp_path / "run")) in (0, 2)


# -------------------------------------------------------------------- checkpoints


def test_a_flipped_bit_is_found_wherever_it_is(run: Path) -> None:
    """Before anything is made of the file: the one before it is taken, or the bit is in no part."""
    folder = run / "checkpoints"
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    whole = last.read_bytes()
    previous.write_bytes(whole)
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        last.write_bytes(damaged)
        path, content = find_checkpoint(folder)
        assert content is not None
        assert path in (last, previous)
        for kept in folder.glob("*.damaged"):
            kept.unlink()
            last.write_bytes(whole)


def test_a_fault_of_the_disk_is_no_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run / "checkpoints"
    opened = Path.open

    def failing(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "last.ckpt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(StorageError, match=r"last.ckpt cannot be read \(Permission denied\)"):
        find_checkpoint(folder)
    assert (folder / "last.ckpt").exists()
    assert not list(folder.glob("*.damaged"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**6,)),
        torch.empty(10**9, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_that_are_not_all_there(tmp_path: Path, tensor: torch.Tensor) -> None:
    file = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": [tensor]}, "loops": {}}, file)
    with pytest.raises(ConfigurationError, match="damaged or holds more than plain data"):
        read_checkpoint(file)


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\x07\u202ec\n\td") == "a\\x1b[2Jb\\x07\\u202ec\n\td"
    assert printable("a\udcff\u200b\ufeff") == r"a\udcff\u200b\ufeff"


def test_control_characters_of_a_config_are_written_out(run: Path) -> None:
    config = run / ".hydra" / "resolved.yaml"
    config.write_text(config.read_text() + 'added: ["a\\e[2Jb"]\n"k\\a": 1\n')
    content = read_config(config, run)
    assert content.added == [r"a\x1b[2Jb"]
    assert content[r"k\x07"] == 1


def test_a_checkpoint_that_is_gone_is_a_missing_file(tmp_path: Path) -> None:
    """Told in one line, as each missing file: Lightning's error has no number."""
    with pytest.raises(FileNotFoundError) as raised:
        PlainDataIO().load_checkpoint(tmp_path / "last.ckpt")
    assert is_of_a_file(raised.value)
    assert raised.value.filename == str(tmp_path / "last.ckpt")
