"""Any override of any key: the run works or ends in one clear line, and never in a crash."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from fuzz_worker import TINY, TRAINED, UNREAD, Worker
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.commands import config as cli

pytestmark = pytest.mark.heavy

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in cli.config_directory().iterdir()
    if folder.is_dir()
}

ENVIRONMENTS = ("cartpole", "pendulum")

DRAWN = {"EXAMPLES": "2000", "SEED": "0"}

TOOLS = {
    "evaluate": ["episodes=2", "num_envs=2", "trainer.accelerator=cpu"],
    "record": ["max_steps=20"],
    "play": ["episodes=1"],
    "export": [],
}
"""Commands that look at a run, and what makes them short."""


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        key = f"{prefix}{name}"
        yield key
        child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from leaves(child, f"{key}.")


def keys_of(command: str, *lines: list[str]) -> list[str]:
    """Return every dotted key of a command's config, whichever of ``lines`` it is composed of."""
    keys: dict[str, None] = {}
    with initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        for words in lines:
            keys |= dict.fromkeys(leaves(compose(command, words)))
    # Lightning looks at some of the Trainer's arguments late, and says so in its own way
    return [key for key in keys if not key.startswith("trainer.")]


def hydra_keys() -> list[str]:
    """Return every dotted key of Hydra's own config."""
    with initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        return list(leaves(compose("train", return_hydra_config=True).hydra, "hydra."))


NUMBERS = [
    *(-1, 0, 1, 2, 3, 7, 16, 32, 64, 65, 2**31 - 1, 2**31, 2**63, 10**12, 10**30, 10**400),
    *("0.5", "1.0", "-0.0", "1e-9", "1e6", "1e300", "1e400", "nan", "inf", "-inf"),
]

WORDS = [
    *("true", "false", "null", "auto", "none", "True", "???", "''", '"7"', "'0.5'"),
    *("[]", "[1,2]", "[a,b]", "{}", "{a:1}", "{a:{b:[c]}}", "[null]", "[[]]"),
    *("${seed}", "${nothing}", "${oc.env:HOME}", "${now:%Y}", "a=b", "x" * 300, "$a_b$", "<b>"),
    *("linear", "worker", "minibatch", "torch", "trace", "cpu", "gpu", "ddp", "fsdp"),
    *("bf16-mixed", "16-mixed", "64-true", "envpool", "gymnasium", "CartPole-v1"),
    *("Pendulum-v1", "Ant-v4", "Pong-v5", "episode_return_mean", "simple", "warn"),
    *("ppo1_lightning.PPO", "lightning.Trainer", "builtins.dict", "builtins.len"),
    *("ppo1_lightning.policies.MlpPolicy", "torch.nn.Linear", "collections.Counter"),
]

PATHS = [
    *(TRAINED, f"{TRAINED}/checkpoints/last.ckpt", f"{TRAINED}/csv/metrics.csv", "missing"),
    *(f"{TRAINED}/checkpoints", ".", f"{TRAINED}/..", "/dev/null", "/proc/self/mem", "/dev/zero"),
]

# no slash and no dot: the paths of a run stay within its folder
LETTERS = "ab1-_ ${}[]:,'\"=?~+*é\n\\\x1b<&|"

FLAGS = [
    *("--cfg=job", "--cfg=x", "--info=config", "--help", "--hydra-help", "--package=a"),
    *("--config-name=nothing", "--config-path=nothing", "--config-dir=nothing", "--resolve"),
    *("-m", "--multirun", "--nothing", "-", "--", "=", "=1", "+", "~", "++a", "@", ""),
]

CHOICES = [
    f"{group}={name}"
    for group, names in GROUPS.items()
    for name in [*names, "null", "nothing", "[]"]
    if group not in ("env", "experiment", "hparams_search") and (group, name) != ("trainer", "ddp")
]

DEVICES = [f"trainer.devices={number}" for number in ("0", "-1", "auto", "[]", "1.5", "x", "[0]")]

CARTPOLE = [*TINY, "env=cartpole"]

TUNE = [
    *("tune", *CARTPOLE, "hparams_search=optuna", "hparams_search.n_trials=1"),
    *("hparams_search.seeds=[0]", "hparams_search.search_space={gamma: 0.9}"),
]

KEYS = {
    "train": keys_of("train", ["env=cartpole"], ["env=pong"], ["env=halfcheetah"]),
    "tune": keys_of("train", ["hparams_search=optuna"]),
    "hydra": hydra_keys(),
    **{tool: keys_of(tool, []) for tool in TOOLS},
}


class Draw(random.Random):
    """Draws command lines."""

    def value(self) -> str:
        kinds = [
            lambda: str(self.choice(NUMBERS)),
            lambda: str(self.choice([self.randint(-100, 100), self.uniform(-10, 10)])),
            lambda: self.choice(WORDS),
            lambda: self.choice(PATHS),
            lambda: "".join(self.choices(LETTERS, k=self.randint(0, 12))),
        ]
        return self.choice(kinds)()

    def override(self, command: str) -> str:
        """Return one word of the command line."""
        key, kind = self.choice(KEYS[command]), self.randint(0, 9)
        word = f"{key}={self.value()}"
        if word == "episodes=1e6":  # no hang: minutes of what was asked for
            word = "episodes=1e4"
        if kind < 5:
            return word
        if kind == 5:
            return f"~{key}"
        if kind == 6:
            return f"{word},{self.value()}"
        if kind == 7:
            inner = self.choice(["a", "_target_", "seed", "0", "_partial_", "_args_"])
            return f"{self.choice(['', '+', '++'])}{key}.{inner}={self.value()}"
        return f"{self.choice(['+', '++', '~'])}{word}"

    def any(self, command: str) -> str:
        return self.choice(
            [*[self.override(command)] * 5, self.choice(CHOICES), self.choice(DEVICES)]
        )

    def some(self, word: Callable[[], str], least: int = 1) -> list[str]:
        return [word() for _ in range(self.randint(least, 3))]

    def report(self) -> str:
        key = self.choice(["", "", "output=", "format="])
        return key + self.choice([TRAINED, "png", "a.html", "a/b.svg", self.value()])

    def command_line(self) -> list[str]:
        share = self.randrange(100)
        if share < 45:
            env = f"env={self.choice(ENVIRONMENTS)}"
            words = [*TINY, env, *self.some(lambda: self.any("train"))]
        elif share < 65:
            tool = self.choice(list(TOOLS))
            base = [tool, f"run={TRAINED}", *TOOLS[tool]]
            words = [*base, *self.some(lambda: self.override(tool))]
        elif share < 75:
            words = ["report", *self.some(self.report, least=0)]
        elif share < 80:
            options = self.some(lambda: self.choice(["--output=", "--workers="]) + self.value(), 0)
            words = ["envs", self.choice(["cart*", "[", "Pong-v5", self.value()]), *options]
        elif share < 90:
            flag = [self.choice(FLAGS)] if share < 83 else []
            words = [*CARTPOLE, *flag, *self.some(lambda: self.override("hydra"))]
        elif share < 95:
            sweep = ["-m", "hydra.sweep.dir=sweep", "seed=0,1"]
            words = [*CARTPOLE, *self.some(lambda: self.any("train")), *sweep]
        elif share < 99:
            words = [*TUNE, *self.some(lambda: self.override("tune"))]
        else:
            ranks = ["trainer.devices=2", "num_envs=2"]
            words = [*CARTPOLE, *ranks, *self.some(lambda: self.any("train"))]
        return [*words, UNREAD] if self.random() < 0.05 else words


WRITTEN = [
    CARTPOLE,
    [*CARTPOLE, "num_envs=1", "trainer.devices=2"],
    [*CARTPOLE, "trainer.devices=2", "algo.clip_coef=x"],
    [*CARTPOLE, "trainer.devices=7"],
    [*CARTPOLE, "run=64"],
    [*CARTPOLE, "evaluation=7"],
    [*CARTPOLE, "+evaluation.nothing=7", "evaluation.every_steps=64"],
    [*CARTPOLE, "total_iterations=10000000000000000000000"],
    [*CARTPOLE, "hydra.verbose=x"],
    [*CARTPOLE, "hydra.job.chdir=7"],
    [*CARTPOLE, "hydra.run.dir=null"],
    [*CARTPOLE, "hydra.run.dir=[]"],
    [*CARTPOLE, "hydra.mode=x"],
    [*CARTPOLE, "hydra.output_subdir=null"],
    [*CARTPOLE, "hydra/job_logging=disabled"],
    [*CARTPOLE, "hydra/launcher=nothing"],
    [*CARTPOLE, "hydra.callbacks=null"],
    [*CARTPOLE, "~hydra.run.dir"],
    [*CARTPOLE, UNREAD],
    ["evaluate", f"run={TRAINED}", "episodes=2", UNREAD],
    ["record", f"run={TRAINED}", "max_steps=2", "output=[]"],
    ["record", f"run={TRAINED}", "max_steps=2", "++seed=cpu"],
    ["record", f"run={TRAINED}", f"ckpt_path={'x' * 300}"],
    ["report", TRAINED, UNREAD],
    ["report", "x" * 300],
    ["report"],
]
"""Of what was found once, and what is not drawn often."""


def find_problems(worker: Worker, lines: Iterable[list[str]]) -> dict[str, list[str]]:
    """Return, for each kind of problem, the first command line that shows it."""
    problems: dict[str, list[str]] = {}
    for words in lines:
        problem = worker.problem(words)
        if problem is not None and problem not in problems:
            problems[problem] = words
            print(problem, words, file=sys.stderr, flush=True)
    return problems


def drawn(count: int, seed: int) -> list[list[str]]:
    draw = Draw(seed)
    return [draw.command_line() for _ in range(count)]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(timeout=60)
    yield worker
    worker.close()


@pytest.mark.slow
def test_what_was_found_once(worker: Worker) -> None:
    assert not find_problems(worker, WRITTEN)


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_any_command_line_runs_or_ends_in_one_line(worker: Worker) -> None:
    """FUZZ_EXAMPLES says how many, FUZZ_SEED which."""
    count, seed = (int(os.environ.get(f"FUZZ_{k}", v)) for k, v in DRAWN.items())
    assert not find_problems(worker, drawn(count, seed))


@pytest.mark.slow
def test_a_crash_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next case is judged as ever."""
    (tmp_path / "crash.py").write_text("import os\nos.abort()\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    worker = Worker(timeout=60)
    crash = worker.problem([*TINY, "env=gymnasium", "env.id=crash:Env-v0"])
    assert crash == f"the process died by {signal.SIGABRT.name}"
    assert worker.problem([*TINY, "env=nothing"]) is None
    worker.close()
