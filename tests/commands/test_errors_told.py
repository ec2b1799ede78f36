"""Bad input: one line that says what to do, exit status 2, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Sequence, Text
from lightning import Callback

from ppo1_lightning import __main__ as command_line

pytestmark = pytest.mark.heavy

WRAPPER = "gymnasium.wrappers.TimeAwareObservation"
TINY = ["debug=default", "trainer.accelerator=cpu", "logger=csv"]


class _Env(gymnasium.Env[Any, Any]):
    """Two actions, three numbers to see; subclasses spoil one thing."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), self.reward(), False, False, {}

    def reward(self) -> float:
        return 1.0


class NanRewardEnv(_Env):
    """Its reward becomes NaN in the second iteration (rollouts are of 32 steps)."""

    steps = 0

    def reward(self) -> float:
        self.steps += 1
        return float("nan") if self.steps == 40 else 1.0


class WrongHook(Callback):
    """Its hook takes fewer arguments than Lightning calls it with."""

    def on_train_start(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


class TextActionEnv(_Env):
    action_space = Text(5)


class SequenceObservationEnv(_Env):
    observation_space = Sequence(Discrete(3))


for _env in (NanRewardEnv, TextActionEnv, SequenceObservationEnv):
    gymnasium.register(f"{_env.__name__[:-3]}-v0", entry_point=cast(Any, _env))


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


@pytest.fixture
def command(
    in_empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run the command line in this process, expecting an error; return its one line."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
        with pytest.raises(SystemExit) as exit_:
            command_line.main()
        assert exit_.value.code == 2
        return error_line(capfd.readouterr().err)

    return run


def error_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    for noise in ("Config search path", "full_key", "HYDRA_FULL_ERROR", "See https"):
        assert noise not in stderr
    return lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three iterations of CartPole."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = [*TINY, "env=cartpole", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *words])
        command_line.main()
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("word", ["env=cartpole", "policy=mlp", "algo=trpo"])
@pytest.mark.parametrize("name", ["evaluate", "record"])
def test_a_group_of_another_command(command: Callable[..., str], name: str, word: str) -> None:
    assert f"Could not override '{word.partition('=')[0]}'" in command(name, "run=x", word)


GYMNASIUM = "env=gymnasium"

BAD_INPUT = {
    # typos, each with the nearest that exists where it is of ours
    "key": (["num_env=3"], "'num_envs'"),
    "key in a group": (["algo.lerning_rate=1e-3"], "'algo.learning_rate'"),
    "key of another algorithm": (["algo=trpo_classic", "algo.target_kl=0.1"], "'algo.max_kl'"),
    "another policy's": (
        ["env=pong", "algo=trpo_mujoco", "policy=cnn_separate"],
        "'hidden_size'; ~policy.hidden_size leaves it out",
    ),
    "another algorithm's": (
        ["env=cartpole", "algo._target_=ppo1_lightning.TRPO"],
        "TRPO has no such argument, ~algo.",
    ),
    "key without its group": (["learning_rate=1e-3"], "'algo.learning_rate'"),
    "key of another library": (["algo.n_epochs=4"], "'algo.update_epochs'"),
    "key of Hydra": (["hydra.run.dri=x"], "'hydra.run.dir'"),
    "group": (["envv=pong"], "'env'"),
    "option of a group": (["env=pongg"], "'pong'"),
    "preset": (["algo=paper_atri"], "'paper_atari'"),
    "experiment": (["experiment=cartpole_second"], "'cartpole_seconds'"),
    "added argument": (["+algo.learn_rate=1"], "'learning_rate'"),
    "added argument of the policy": (["+policy.hidden=3"], "policy: MlpPolicy.__init__() got"),
    "argument of another algorithm": (["algo=trpo_classic", "+algo.clip_coef=1"], "algo.clip_coef"),
    "choice": (["algo.anneal=[learning_rat]"], "'learning_rate'"),
    "choice of the policy": (["env=pong", "policy.size=larg"], "'large'"),
    "target": (["algo._target_=ppo1_lightning.PPOO"], "PPOO"),
    # the command line itself
    "no equals sign": (["num_envs"], "num_envs"),
    "word behind an option": (["-m", "+a\n=1\x1b[31m"], "unrecognized arguments: +a =1\\x1b"),
    "two equals signs": (["seed==1"], "seed==1"),
    "several values without -m": (["seed=1,2"], "-m"),
    "no option": (["env=null"], "Config group override must be a string"),
    "added twice": (["+seed=1"], "seed"),
    "interpolation": (["seed=${sed}"], "sed"),
    "group as a list": (["trainer=[]"], "trainer"),
    "group removed": (["~policy"], "policy"),
    "several machines": (["trainer.devices=2", "trainer.num_nodes=2", "num_envs=4"], "torchrun"),
    "preset as a list": (["algo=[]"], "is not a config with a _target_"),
    "another kind of object": (["env._target_=builtins.dict"], "EnvironmentSpec"),
    "class of another library": (
        ["env.wrappers=[{_target_:gymnasium.wrappers.FlatenObservation,_partial_:true}]"],
        "did you mean 'FlattenObservation'",
    ),
    "class of ours": (["policy._target_=ppo1_lightning.policies.MlpPolic"], "'MlpPolicy'"),
    "wrapper without a flag": (
        ["env.wrappers=[{_target_:gymnasium.wrappers.FlattenObservation}]"],
        "a wrapper has _partial_: true beside its _target_",
    ),
    "id of a module": (
        ["env=test_errors_told:NanRewrd-v0"],
        "'NanReward-v0'? (as test_errors_told:ID)",
    ),
    "flag of Hydra": (["+env.id._partial_=1.5"], "_partial_"),
    "number for a checkpoint": (["ckpt_path=1.5"], "ckpt_path=1.5"),
    "address of a checkpoint": (["ckpt_path=http://127.0.0.1/last.ckpt"], "an address"),
    "number for a callback": (["callbacks.progress=3"], "callbacks.progress=3"),
    "folder of the run": (["hydra.run.dir=/proc/nowhere"], "/proc/nowhere"),
    "folder of configs": (["--config-dir", "nowhere"], "nowhere"),
    # environments
    "no id": (["env=atari"], "env.id is not given, expected env.id=VALUE"),
    "no id, folder given": (["env=atari", "hydra.run.dir=here"], "expected env.id=VALUE"),
    "id unknown to EnvPool": (["env=envpool", "env.id=CartPol-v1"], "CartPole-v1"),
    "id unknown to Gymnasium": ([GYMNASIUM, "env.id=CartPol-v1"], "CartPole-v1"),
    "id is a number": (["env=envpool", "env.id=7"], "7"),
    "module of an id": ([GYMNASIUM, "env.id=no_such_module:Env-v0"], "no_such_module"),
    "backend": (["env.backend=envpol"], "'envpool'"),
    "option of EnvPool": (["env=pong", "+env.options.frameskip=2"], "frame_skip"),
    "option not listed": (["env=pong", "env.options.max_episode_steps=9"], "+env.options"),
    "option that crashes EnvPool": (["env=pong", "env.options.noop_max=0"], "noop_max"),
    "threads": (["env.num_threads=-1"], "num_threads"),
    "observation keys": (["env=fetchreach", "env.observation_keys=[goal]"], "desired_goal"),
    "action space": ([GYMNASIUM, "env.id=TextAction-v0"], "Text"),
    "observation space": ([GYMNASIUM, "env.id=SequenceObservation-v0"], "Sequence"),
    "images for an MLP": (["env=pong", "policy=mlp"], "cnn_small"),
    "vectors for a CNN": (["env=cartpole", "policy=cnn_small"], "policy=mlp"),
    "NaN reward": ([GYMNASIUM, "env.id=NanReward-v0"], "nan"),
    # sizes
    "workers of environments": (["num_envs=3", "mpi_workers=2"], "num_envs=2 or 4"),
    "workers of a minibatch": (["mpi_workers=2", "algo.minibatch_size=15"], "14 or 16"),
    "minibatch of a rollout": (["algo.minibatch_size=2048"], "64"),
    "pools of a device": (["num_envs=8", "env.num_pools=2", "trainer.devices=3"], "such as 1"),
    "no environments": (["num_envs=0"], "at least 1"),
    # what no memory holds, and no float32
    "environments": (["num_envs=1000000000"], "num_envs * num_steps"),
    "steps": (["num_steps=1000000000000"], "num_envs * num_steps"),
    "epochs": (["algo.update_epochs=1000000000000"], "update_epochs"),
    "wide": (["policy.hidden_size=1000000"], "1000000 units"),
    "deep": (["policy.num_layers=1000000000"], "policy.num_layers=1000000000"),
    "memory": (["policy=mlp_lstm", "policy.memory_size=300000"], "policy.memory_size=300000"),
    "large number": (["algo.value_clip=1e300"], "value_clip=1e+300"),
    "large rate": (["algo.learning_rate=1e38"], "learning_rate=1e+38"),
    "evaluation": (
        ["evaluation.every_steps=64", "evaluation.episodes=1e12"],
        "1,000,000,000,000 ep",
    ),
    "pictures": (["env=pong", "num_envs=100", "num_steps=1e6"], "num_envs=100 over num_steps"),
    "many threads": (["env.num_threads=1000000"], "env.num_threads=1000000"),
    # the optimizer, which says itself what it takes
    "argument of the optimizer": (["+algo.optimizer.a=-16"], "TensorFlowAdam cannot be made"),
    "optimizer of other arguments": (
        ["algo.optimizer._target_=torch.optim.SGD"],
        "SGD cannot be made: SGD.__init__() got an unexpected",
    ),
    "optimizer that needs a closure": (
        ["algo.optimizer._target_=torch.optim.LBFGS", "~algo.optimizer.eps"],
        "LBFGS takes no step: ",
    ),
    "no optimizer": (
        ["algo.optimizer._target_=builtins.dict", "~algo.optimizer.eps"],
        "dict returns a dict, expected a torch.optim.Optimizer",
    ),
    "one beta": (["+algo.optimizer.betas=[0.9]"], "betas=[0.9] is not two numbers"),
    "a beta of 1 in float32": (
        ["algo=ppo2", "+algo.optimizer.betas=[0.9,0.99999999]"],
        "expected 0 to below 1",
    ),
    "negative epsilon": (
        ["algo.optimizer.eps=-12"],
        "eps=-12 is out of range, expected a number at least 0",
    ),
    "betas": (["+algo.optimizer.betas=7"], "betas=7 is not two numbers"),
    "a beta too many": (["+algo.optimizer.betas=[0.9,0.9,0.9]"], "is not two numbers"),
    "a beta that is a word": (["+algo.optimizer.betas=[a,b]"], "TensorFlowAdam cannot be made"),
    "epsilon of RMSprop": (["algo=a2c", "algo.optimizer.eps=-1"], "eps=-1"),
    # paths that are none
    "number for a folder": (["callbacks.checkpoint.dirpath=7"], "dirpath=7"),
    "config for a folder": (["trainer.default_root_dir={a:1}"], "trainer.default_root_dir"),
    "device for a folder": (["trainer.default_root_dir=/dev/null"], "/dev/null cannot be a folder"),
    # memory
    "kind of memory": (["policy=mlp_gru", "policy.memory=grru"], "'gru'"),
    "sequences": (["policy=mlp_gru", "algo.sequence_length=7"], "does not divide num_steps"),
    "sequences without memory": (["algo.sequence_length=8"], "policy=mlp_gru"),
    "negative steps": (["num_steps=-4"], "at least 1"),
    "fraction of a step": (["num_steps=1.5"], "whole number"),
    "word for a number": (["num_envs=many"], "'many'"),
    "negative seed": (["seed=-1"], "seed=-1"),
    # budgets
    "two budgets": (["total_seconds=5"], "exactly one"),
    **{
        f"{key} of 400 digits": ([f"{key}={10**400}"], "(401 characters) is ")
        for key in ("num_envs", "algo.update_epochs", "algo.learning_rate", "env.timeout")
    },
    "layers": (["policy.num_layers=100000", "policy.hidden_size=1"], "at most 1000"),
    "no budget": (["total_iterations=null"], "exactly one"),
    "negative budget": (["total_iterations=-3"], "total_iterations=-3"),
    "zero seconds": (["total_iterations=null", "total_seconds=0"], "total_seconds=0"),
    "evaluation as a number": (["evaluation=7"], "evaluation=7 is not a config"),
    "key of the evaluation": (["+evaluation.episods=7"], "'episodes'"),
    "metric as a number": (["optimized_metric=7"], "not the name of a metric"),
    "metric as a config": (["callbacks.checkpoint.monitor={a:1}"], "not the name of a metric"),
    "callbacks of the Trainer": (["+trainer.callbacks=[]"], "callbacks.NAME"),
    # hyperparameters
    "negative clip": (["algo.clip_coef=-0.1"], "clip_coef=-0.1"),
    "discount": (["algo.gamma=1.5"], "gamma=1.5"),
    "NaN": (["algo.learning_rate=nan"], "learning_rate"),
    "word for a flag": (["algo.bootstrap_truncation=maybe"], "bootstrap_truncation='maybe'"),
    "neither flag nor auto": (["compile=maybe"], "compile='maybe'"),
    "no layers": (["policy.num_layers=0"], "num_layers"),
    "wrapper made at once": (
        ["env=gymnasium", "env.id=CartPole-v1", f"env.wrappers=[{{_target_: {WRAPPER}}}]"],
        "missing 1 required positional argument: 'env'",
    ),
    # Lightning
    "accelerator": (["trainer.accelerator=gpux"], "gpux"),
    "precision": (["trainer.precision=7"], "7"),
    "strategy": (["trainer.strategy=ddpp"], "ddpp"),
    "argument of the Trainer": (["+trainer.max_step=3"], "max_step"),
    "number of the Trainer": (["trainer.max_epochs=x"], "trainer.max_epochs='x' is not a whole"),
    "flag of the Trainer": (["trainer.enable_checkpointing=x"], "is not true or false"),
    "gradient clipping by Lightning": (["+trainer.gradient_clip_val=1"], "gradient"),
    "checkpoints too often": (["callbacks.checkpoint.every_n_iterations=0"], "every_n_iterations"),
}


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if number % 2 else [])
        for number, (name, case) in enumerate(BAD_INPUT.items())  # neighbours are alike
    ],
)
def test_bad_input(words: list[str], fragment: str, command: Callable[..., str]) -> None:
    line = command(*TINY, *words)
    assert fragment in line
    assert not list(Path().rglob("best.ckpt"))


def test_there_are_enough_cases() -> None:
    assert len(BAD_INPUT) >= 25


def _truncate(whole: bytes, file: Path) -> None:
    file.write_bytes(whole[: len(whole) // 2])


def _empty(whole: bytes, file: Path) -> None:
    file.write_bytes(b"")


def _text(whole: bytes, file: Path) -> None:
    file.write_text("these are not the weights you are looking for")


class _Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was_run",)


def _malicious(whole: bytes, file: Path) -> None:
    torch.save({"state_dict": _Malicious(), "loops": {}}, file)


def _weights_only(whole: bytes, file: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, file)


def _foreign(whole: bytes, file: Path) -> None:
    torch.save({"state_dict": {}, "loops": {}, "pytorch-lightning_version": "2.6.6"}, file)


def _folder(whole: bytes, file: Path) -> None:
    file.mkdir()


def _missing(whole: bytes, file: Path) -> None:
    pass


SPOILED = {
    _truncate: "truncated",
    _empty: "truncated",
    _text: "damaged",
    _malicious: "more than plain data",
    _weights_only: "not a checkpoint",
    _foreign: "not written by ppo1_lightning",
    _folder: "is a folder",
    _missing: "does not exist",
}


@pytest.mark.parametrize(
    ("spoil", "fragment"), SPOILED.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_bad_checkpoint(
    spoil: Callable[[bytes, Path], None],
    fragment: str,
    checkpoint: Path,
    command: Callable[..., str],
) -> None:
    file = Path("spoiled.ckpt").absolute()
    spoil(checkpoint.read_bytes(), file)
    before = file.read_bytes() if file.is_file() else None
    assert fragment in command(*TINY, "env=cartpole", f"ckpt_path={file}")
    assert (file.read_bytes() if file.is_file() else None) == before
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["env=acrobot"], "another environment"),
        (["env=cartpole", "policy.hidden_size=32"], "another policy"),
    ],
)
def test_checkpoint_of_another_run(
    words: list[str], fragment: str, checkpoint: Path, command: Callable[..., str]
) -> None:
    assert fragment in command(*TINY, *words, f"ckpt_path={checkpoint}")


LONG = "x" * 300
"""No file's name."""


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["record", "max_steps=2", "++seed=cpu"], "seed='cpu' is not a whole number"),
        (["evaluate", "episodes=1", "seed=-1"], "seed=-1"),
        (["export", f"ckpt_path={LONG}"], "ckpt_path=xxx"),
        (["record", f"output={LONG}/a"], "xxx"),
        (["report", LONG], "xxx"),
        (["envs", "--nothing"], "unrecognized arguments: --nothing; see --help"),
    ],
)
def test_a_tool_refuses(
    words: list[str], fragment: str, checkpoint: Path, command: Callable[..., str]
) -> None:
    tool, *rest = words
    run = [] if tool in ("report", "envs") else [f"run={checkpoint.parents[1]}"]
    assert fragment in command(tool, *run, *rest)


def test_finished_run_is_kept(checkpoint: Path, command: Callable[..., str]) -> None:
    """Neither its checkpoints nor its records change."""
    folder = checkpoint.parents[1]
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    line = command(*TINY, "env=acrobot", f"hydra.run.dir={folder}")
    assert "resume=auto" in line
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_error_during_training_keeps_what_was_learned(command: Callable[..., str]) -> None:
    command(*TINY, GYMNASIUM, "env.id=NanReward-v0", "hydra.run.dir=run")
    assert Path("run/checkpoints/last.ckpt").exists()
    assert len(Path("run/csv/metrics.csv").read_text().splitlines()) == 2  # header, iteration 1
    assert "nan" in Path("run/train.log").read_text().splitlines()[-1]


def test_sweep_goes_on_after_a_bad_job(command: Callable[..., str]) -> None:
    command(*TINY, "algo.clip_coef=-1,0.2", "hydra.sweep.dir=sweep", "-m")
    assert not Path("sweep/0/checkpoints/last.ckpt").exists()
    assert Path("sweep/1/checkpoints/last.ckpt").exists()


def test_a_user_s_own_mistake_keeps_its_traceback(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where it shows in Lightning's code, which calls it."""
    words = [*TINY, "+callbacks.own._target_=test_errors_told.WrongHook"]
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
    with pytest.raises(SystemExit) as exit_:
        command_line.main()
    assert exit_.value.code == 1
    errors = capfd.readouterr().err
    assert "TypeError: WrongHook.on_train_start() takes 1 positional argument" in errors
    assert "error: " not in errors


def test_full_error_on_request(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *TINY, "algo.clip_coef=-1"])
    with pytest.raises(Exception, match="clip_coef"):
        command_line.main()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["num_env=3"], "'num_envs'"),
        (["env=acrobot", "trainer.devices=2"], "another environment"),
    ],
)
@pytest.mark.slow
def test_own_process(
    words: list[str], fragment: str, checkpoint: Path, in_empty_folder: Path
) -> None:
    """As a user starts it: the same line, once, also where there would be two processes."""
    words = ["-m", "ppo1_lightning", *TINY, *words, f"ckpt_path={checkpoint}"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert fragment in error_line(done.stderr)
