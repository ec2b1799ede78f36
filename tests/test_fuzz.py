"""Any override of any key: the run works or ends in one clear line, and never in a crash."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_worker import TINY, TRAINED, UNREAD, Worker
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
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


KEYS = keys_of("train", ["env=cartpole"], ["env=pong"], ["env=halfcheetah"])

NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 3, 7, 16, 32, 64, 65, 2**31 - 1, 2**31, 2**63, 10**30]),
    st.sampled_from(["0.5", "1.0", "-0.0", "1e-9", "1e6", "1e300", "1e400", "nan", "inf", "-inf"]),
    st.integers(-100, 100),
    st.floats(-10, 10),
).map(str)

WORDS = st.one_of(
    st.sampled_from(
        [
            *("true", "false", "null", "auto", "none", "True", "???", "''", '"7"', "'0.5'"),
            *("[]", "[1,2]", "[a,b]", "{}", "{a:1}", "{a:{b:[c]}}", "[null]", "[[]]"),
            *("${seed}", "${nothing}", "${oc.env:HOME}", "${now:%Y}", "a=b", "x" * 300),
            *("linear", "worker", "minibatch", "torch", "trace", "cpu", "gpu", "ddp", "fsdp"),
            *("bf16-mixed", "16-mixed", "64-true", "envpool", "gymnasium", "CartPole-v1"),
            *("Pendulum-v1", "Ant-v4", "Pong-v5", "episode_return_mean", "simple", "warn"),
            *("ppo1_lightning.PPO", "lightning.Trainer", "builtins.dict", "builtins.len"),
            *("ppo1_lightning.policies.MlpPolicy", "torch.nn.Linear", "collections.Counter"),
        ]
    ),
    # no slash and no dot: the paths of a run stay within its folder
    st.text("ab1-_ ${}[]:,'\"=?~+*é\n\\\x1b<&|", max_size=12),
)

PATHS = st.sampled_from(
    [
        *(TRAINED, f"{TRAINED}/checkpoints/last.ckpt", f"{TRAINED}/csv/metrics.csv", "missing"),
        *(f"{TRAINED}/checkpoints", ".", "..", "/dev/null", "/proc/self/mem", "/dev/zero"),
    ]
)

VALUES = st.one_of(NUMBERS, NUMBERS, WORDS, WORDS, PATHS)

FLAGS = st.sampled_from(
    [
        *("--cfg=job", "--cfg=x", "--info=config", "--help", "--hydra-help", "--package=a"),
        *("--config-name=nothing", "--config-path=nothing", "--config-dir=nothing", "--resolve"),
        *("-m", "--multirun", "--nothing", "-", "--", "=", "=1", "+", "~", "++a", "@", ""),
    ]
)


def overrides(keys: list[str]) -> SearchStrategy[str]:
    """Return strategies for one word of the command line."""
    override = st.builds("{}={}".format, st.sampled_from(keys), VALUES)
    signed = st.builds("{}{}".format, st.sampled_from(["+", "++", "~"]), override)
    nested = st.builds(
        "{}{}.{}={}".format,
        st.sampled_from(["", "+", "++"]),
        st.sampled_from(keys),
        st.sampled_from(["a", "_target_", "seed", "0", "_partial_", "_args_"]),
        VALUES,
    )
    removed = st.sampled_from(keys).map("~{}".format)
    several = st.builds("{},{}".format, override, VALUES)
    return st.one_of(override, override, override, override, signed, nested, removed, several)


CHOICES = st.sampled_from(
    [
        f"{group}={name}"
        for group, names in GROUPS.items()
        for name in [*names, "null", "nothing", "[]"]
        if group not in ("env", "experiment", "hparams_search")
        and (group, name) != ("trainer", "ddp")
    ]
)

DEVICES = st.builds(
    "trainer.devices={}".format, st.sampled_from(["0", "-1", "auto", "[]", "1.5", "x", "[0]"])
)

ANY = st.one_of(*[overrides(KEYS)] * 5, CHOICES, DEVICES)

HYDRA = st.one_of(overrides(hydra_keys()), FLAGS)


def lines(base: list[str], words: SearchStrategy[str]) -> SearchStrategy[list[str]]:
    """Return a strategy for command lines: ``base`` and one to three words more."""
    return st.lists(words, min_size=1, max_size=3).map(lambda more: [*base, *more])


TRAIN = st.sampled_from(ENVIRONMENTS).flatmap(lambda env: lines([*TINY, f"env={env}"], ANY))

CARTPOLE = [*TINY, "env=cartpole"]

TOOL = st.sampled_from(list(TOOLS)).flatmap(
    lambda tool: lines([tool, f"run={TRAINED}", *TOOLS[tool]], overrides(keys_of(tool, [])))
)

TUNE = lines(
    [
        *("tune", *CARTPOLE, "hparams_search=optuna", "hparams_search.n_trials=1"),
        *("hparams_search.seeds=[0]", "hparams_search.search_space={gamma: 0.9}"),
    ],
    overrides(keys_of("train", ["hparams_search=optuna"])),
)

REPORT = st.lists(
    st.one_of(
        PATHS,
        st.sampled_from([TRAINED, "format=png", "format=", "output=a.html", "output=a/b.svg"]),
        VALUES,
        VALUES.map("output={}".format),
        VALUES.map("format={}".format),
    ),
    max_size=3,
).map(lambda words: ["report", *words])

ENVS = st.lists(
    st.one_of(
        st.sampled_from(["CartPole", "cart*", "[", "Pong-v5", "--output=a.md", "--workers=1"]),
        VALUES,
        VALUES.map("--output={}".format),
        VALUES.map("--workers={}".format),
    ),
    max_size=3,
).map(lambda words: ["envs", *words])

MULTIRUN = lines([*CARTPOLE, "-m", "hydra.sweep.dir=sweep", "seed=0,1"], ANY)

RANKS = lines([*CARTPOLE, "trainer.devices=2", "num_envs=2"], ANY)

CASES = st.tuples(
    st.integers(0, 99).flatmap(
        lambda share: (
            TRAIN
            if share < 45
            else TOOL
            if share < 65
            else REPORT
            if share < 75
            else ENVS
            if share < 80
            else lines(CARTPOLE, HYDRA)
            if share < 90
            else MULTIRUN
            if share < 95
            else TUNE
            if share < 99
            else RANKS
        )
    ),
    st.sampled_from([[]] * 19 + [[UNREAD]]),
).map(lambda case: [*case[0], *case[1]])


def find_problems(worker: Worker, max_examples: int, number: int) -> dict[str, list[str]]:
    """Return, for each kind of problem, the first command line that shows it."""
    problems: dict[str, list[str]] = {}

    @seed(number)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    @example(CARTPOLE)
    @example([*CARTPOLE, "num_envs=1", "trainer.devices=2"])
    @example([*CARTPOLE, "trainer.devices=2", "algo.clip_coef=x"])
    @example([*CARTPOLE, "trainer.devices=7"])
    @example([*CARTPOLE, "run=64"])
    @example([*CARTPOLE, "hydra.verbose=x"])
    @example([*CARTPOLE, "hydra.job.chdir=7"])
    @example([*CARTPOLE, "hydra.run.dir=null"])
    @example([*CARTPOLE, "hydra.run.dir=[]"])
    @example([*CARTPOLE, "hydra.mode=x"])
    @example([*CARTPOLE, "hydra.output_subdir=null"])
    @example([*CARTPOLE, "hydra/job_logging=disabled"])
    @example([*CARTPOLE, "hydra/launcher=nothing"])
    @example([*CARTPOLE, "hydra.callbacks=null"])
    @example([*CARTPOLE, "~hydra.run.dir"])
    @example([*CARTPOLE, UNREAD])
    @example(["evaluate", f"run={TRAINED}", "episodes=2", UNREAD])
    @example(["report", TRAINED, UNREAD])
    def look(words: list[str]) -> None:
        problem = worker.problem(words)
        if problem is not None and problem not in problems:
            problems[problem] = words
            print(problem, words, file=sys.stderr, flush=True)

    look()
    return problems


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(timeout=60)
    yield worker
    worker.close()


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_thousands_of_command_lines(worker: Worker) -> None:
    """FUZZ_EXAMPLES says how many, FUZZ_SEED which."""
    examples, number = (int(os.environ.get(f"FUZZ_{k}", v)) for k, v in DRAWN.items())
    assert not find_problems(worker, examples, number)


@pytest.mark.slow
def test_a_crash_is_seen(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next case is judged as ever."""
    (tmp_path / "crash.py").write_text("import os\nos.abort()\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    worker = Worker(timeout=60)
    crash = worker.problem([*TINY, "env=gymnasium", "env.id=crash:Env-v0"])
    assert crash == f"the process died by {signal.SIGABRT.name}"
    assert worker.problem([*TINY, "env=nothing"]) is None
    worker.close()
