"""Checkpoints of strangers: nothing in them is run, and no path in them is written to."""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ppo1_lightning import PPO, MlpPolicy, RolloutDataModule
from ppo1_lightning import __main__ as command_line
from ppo1_lightning.algorithms.entry import KEY

pytestmark = pytest.mark.heavy

MARKER = "was_run"  # what a payload makes in the working directory

TINY = ["debug=default", "env=cartpole", "algo=classic", "trainer.accelerator=cpu", "logger=csv"]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of three iterations of CartPole."""
    folder = tmp_path_factory.mktemp("genuine") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *TINY, f"hydra.run.dir={folder}"])
        command_line.main()
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # downloads go there
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process; return its exit status and its error lines."""

    def run(*words: str) -> tuple[Any, list[str]]:
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *TINY, *words])
        status: Any = 0
        try:
            command_line.main()
        except SystemExit as exit_:
            status = exit_.code
        stderr = capfd.readouterr().err
        assert "Traceback" not in stderr
        return status, [line for line in stderr.splitlines() if line.startswith("error: ")]

    return run


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def fit(path: Path | str, **options: Any) -> None:
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=32, total_iterations=4)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=-1, **(quiet | options))
    trainer.fit(PPO(MlpPolicy, minibatch_size=32, update_epochs=2), data, ckpt_path=path)


# -------------------------------------------------------------------- pickles that run code


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARKER,)


class EvalPayload:
    """The same through a builtin."""

    def __reduce__(self) -> Any:
        return eval, (f"open({MARKER!r}, 'w').close()",)


class StatePayload:
    """The same while its state is restored, behind a harmless constructor."""

    def __reduce__(self) -> Any:
        return dict, (), None, None, iter([("key", Payload())])


HAND_MADE = f"cos\nmkdir\n(S'{MARKER}'\ntR.".encode()
"""A pickle in the oldest protocol, which no class has written."""


def in_hyperparameters(genuine: dict[str, Any], file: Path) -> None:
    genuine["hyper_parameters"]["seed"] = Payload()
    torch.save(genuine, file)


def in_weights(genuine: dict[str, Any], file: Path) -> None:
    genuine["state_dict"]["policy.value_head.bias"] = EvalPayload()
    torch.save(genuine, file)


def in_our_entry(genuine: dict[str, Any], file: Path) -> None:
    genuine[KEY]["policy"]["arguments"] = StatePayload()
    torch.save(genuine, file)


def in_callbacks(genuine: dict[str, Any], file: Path) -> None:
    genuine["callbacks"]["RunCheckpoint"]["best_score"] = Payload()
    torch.save(genuine, file)


def in_the_zip(genuine: dict[str, Any], file: Path) -> None:
    whole = io.BytesIO()
    torch.save(genuine, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            bad = name.endswith("/data.pkl")
            target.writestr(name, HAND_MADE if bad else source.read(name))


def in_legacy_format(genuine: dict[str, Any], file: Path) -> None:
    genuine["state_dict"]["policy.value_head.bias"] = Payload()
    torch.save(genuine, file, _use_new_zipfile_serialization=False)


def as_plain_pickle(genuine: dict[str, Any], file: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": Payload(), "loops": {}}))


def by_hand(genuine: dict[str, Any], file: Path) -> None:
    file.write_bytes(HAND_MADE)


FORMS = (
    in_hyperparameters,
    in_weights,
    in_our_entry,
    in_callbacks,
    in_the_zip,
    in_legacy_format,
    as_plain_pickle,
    by_hand,
)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def malicious(request: pytest.FixtureRequest, genuine: Path, folder: Path) -> Path:
    """Return a checkpoint that runs a command in whoever trusts it."""
    file = folder / "malicious.ckpt"
    request.param(load(genuine), file)
    return file


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Serve the folder over http."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_it_runs_in_whoever_trusts_it(malicious: Path) -> None:
    """Without which the other tests would show nothing."""
    try:
        torch.load(malicious, weights_only=False)
    except Exception as error:  # after its command has run, a form may be no checkpoint at all
        print(error)
    assert Path(MARKER).exists()


def test_command_line(malicious: Path, command: Callable[..., Any]) -> None:
    status, lines = command(f"ckpt_path={malicious}")
    assert status == 2
    assert len(lines) == 1
    assert "damaged or holds more than plain data" in lines[0]
    assert not Path(MARKER).exists()


def test_load_from_checkpoint(malicious: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        PPO.load_from_checkpoint(malicious)
    assert not Path(MARKER).exists()


def test_trainer(malicious: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        fit(malicious)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("malicious", [in_hyperparameters, in_legacy_format], indirect=True)
def test_address(malicious: Path, address: str, command: Callable[..., Any]) -> None:
    """Lightning alone would trust it."""
    url = f"{address}/{malicious.name}"
    status, lines = command(f"ckpt_path={url}")
    assert (status, len(lines)) == (2, 1)
    assert "is an address, expected a file" in lines[0]
    with pytest.raises(pickle.UnpicklingError):
        PPO.load_from_checkpoint(url)
    with pytest.raises(pickle.UnpicklingError):
        fit(url)
    assert not Path(MARKER).exists()


def test_a_genuine_checkpoint_can_be_loaded_from_an_address(
    genuine: Path, folder: Path, address: str
) -> None:
    (folder / "good.ckpt").write_bytes(genuine.read_bytes())
    module = PPO.load_from_checkpoint(f"{address}/good.ckpt")
    assert module.counters.iterations == 3
    fit(f"{address}/good.ckpt")


@pytest.mark.parametrize("name", ["http_model", "best", "last"])
def test_a_file_is_a_file_whatever_its_name(
    name: str, genuine: Path, folder: Path, command: Callable[..., Any]
) -> None:
    """Lightning takes such paths for addresses and keywords."""
    (folder / name).write_bytes(genuine.read_bytes())
    status, lines = command(f"ckpt_path={name}", "total_iterations=4", "hydra.run.dir=run")
    assert (status, lines) == (0, [])
    assert load(folder / "run/checkpoints/last.ckpt")["global_step"] == 4


# -------------------------------------------------------------------- plain data with bad intent


CALLABLE = {"_target_": "os.system", "command": f"touch {MARKER}", "_partial_": False}

CALLED_FROM: dict[str, Callable[[dict[str, Any]], Any]] = {
    "hyperparameters": lambda c: c["hyper_parameters"].update(CALLABLE),
    "policy": lambda c: c["hyper_parameters"].update(policy=CALLABLE),
    "seed": lambda c: c["hyper_parameters"].update(seed=CALLABLE),
    "instantiator": lambda c: c["hyper_parameters"].update(_instantiator="os.system"),
    "class path": lambda c: c["hyper_parameters"].update(
        _instantiator="lightning.pytorch.cli.instantiate_module", _class_path="os.system"
    ),
    "policy's name": lambda c: c[KEY]["policy"].update(name="os.system", arguments={}),
    "policy's arguments": lambda c: c[KEY]["policy"]["arguments"].update(CALLABLE),
    "space": lambda c: c[KEY]["spaces"].update(action=CALLABLE),
}


RARELY = ("policy", "seed", "instantiator")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(spoil, id=place, marks=[pytest.mark.slow] if place in RARELY else [])
        for place, spoil in CALLED_FROM.items()
    ],
)
def test_nothing_that_a_checkpoint_names_is_called(
    spoil: Callable[[dict[str, Any]], Any],
    genuine: Path,
    folder: Path,
    command: Callable[..., Any],
) -> None:
    checkpoint = load(genuine)
    spoil(checkpoint)
    torch.save(checkpoint, folder / "bad.ckpt")
    command(f"ckpt_path={folder / 'bad.ckpt'}", "total_iterations=4")
    for load_it in (PPO.load_from_checkpoint, fit):
        try:
            load_it(folder / "bad.ckpt")
        except Exception as error:  # what it says is another test's concern
            print(error)
    assert not Path(MARKER).exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def crafted(genuine: Path, folder: Path, victims: Path, *keys: str) -> Path:
    """Return a checkpoint that names files of others, in the states of callbacks ``keys`` too."""
    checkpoint = load(genuine)
    victim = str(victims / "victim.ckpt")
    state = {
        "monitor": "episode_return_mean",
        "best_score": float("-inf"),
        "best_model_score": torch.tensor(-1.0),
        "best_model_path": victim,
        "current_score": torch.tensor(-1.0),
        "dirpath": str(victims),
        "best_k_models": {victim: torch.tensor(-1.0)},
        "kth_best_model_path": victim,
        "kth_value": torch.tensor(-1.0),
        "last_model_path": victim,
    }
    checkpoint["callbacks"] = dict.fromkeys(["RunCheckpoint", *keys], state)
    checkpoint["hyper_parameters"] |= {"default_root_dir": str(victims), "dirpath": str(victims)}
    torch.save(checkpoint, folder / "crafted.ckpt")
    return folder / "crafted.ckpt"


@pytest.fixture
def victims(folder: Path) -> Path:
    (folder / "victims").mkdir()
    for name in ("victim.ckpt", "last.ckpt", "best.ckpt"):
        (folder / "victims" / name).write_text("precious")
    return folder / "victims"


def test_no_path_of_a_checkpoint_is_written_to(
    genuine: Path, folder: Path, victims: Path, command: Callable[..., Any]
) -> None:
    checkpoint = crafted(genuine, folder, victims)
    before = files(victims)
    status, lines = command(f"ckpt_path={checkpoint}", "total_iterations=9", "hydra.run.dir=run")
    assert (status, lines) == (0, [])
    assert files(victims) == before
    written = {name.split("/")[0] for name in files(folder)}
    assert written == {"crafted.ckpt", "victims", "run"}
    state = load(folder / "run/checkpoints/last.ckpt")["callbacks"]
    assert "victim" not in str(state)


def test_lightnings_own_model_checkpoint(genuine: Path, folder: Path, victims: Path) -> None:
    """It does take paths over, but touches no file outside of its own folder."""
    options: dict[str, Any] = {"monitor": "episode_return_mean", "mode": "max", "save_last": True}
    callback = ModelCheckpoint(folder / "own", every_n_train_steps=1, **options)
    checkpoint = crafted(genuine, folder, victims, callback.state_key)
    before = files(victims)
    with pytest.warns(match="dirpath has changed"):  # so it has read the state
        fit(checkpoint, enable_checkpointing=True, callbacks=[callback])
    assert list((folder / "own").iterdir())
    assert files(victims) == before
