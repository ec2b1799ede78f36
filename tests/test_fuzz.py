"""Any override of any key: the run works or ends in one clear line, and never in a crash."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_worker import Worker
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.commands import config as cli

pytestmark = pytest.mark.heavy

TINY = [
    "debug=default",
    "total_iterations=2",
    "trainer.accelerator=cpu",
    "logger=csv",
    "compile=trace",
    "hydra.run.dir=run",
    "++trainer.max_steps=2",  # of whatever length the run would be
]

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in cli.config_directory().iterdir()
    if folder.is_dir()
}

ENVIRONMENTS = ("cartpole", "pendulum")


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        key = f"{prefix}{name}"
        yield key
        if not OmegaConf.is_missing(node, name) and isinstance(node._get_node(name), DictConfig):
            yield from leaves(node[name], f"{key}.")


def every_key() -> list[str]:
    """Return every dotted key of the config, whichever logger, policy and callbacks are chosen."""
    keys: dict[str, None] = {}
    with initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        for words in (["env=cartpole"], ["env=pong"], ["env=halfcheetah"]):
            keys |= dict.fromkeys(leaves(compose("train", words)))
    # Lightning looks at some of the Trainer's arguments late, and says so in its own way
    return [key for key in keys if not key.startswith("trainer.")]


KEYS = every_key()

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
    st.text("ab1-_ ${}[]:,'\"=?~+*é\n\\", max_size=12),
)

VALUES = st.one_of(NUMBERS, WORDS)


def overrides() -> SearchStrategy[str]:
    """Return strategies for one word of the command line."""
    override = st.builds("{}={}".format, st.sampled_from(KEYS), VALUES)
    nested = st.builds(
        "{}{}.{}={}".format,
        st.sampled_from(["", "+", "++"]),
        st.sampled_from(KEYS),
        st.sampled_from(["a", "_target_", "seed", "0", "_partial_", "_args_"]),
        VALUES,
    )
    removed = st.sampled_from(KEYS).map("~{}".format)
    chosen = st.sampled_from(
        [
            f"{group}={name}"
            for group, names in GROUPS.items()
            for name in [*names, "null", "nothing", "[]"]
            if group not in ("env", "experiment") and (group, name) != ("trainer", "ddp")
        ]
    )
    devices = st.builds(
        "trainer.devices={}".format, st.sampled_from(["0", "-1", "auto", "[]", "1.5", "x", "[0]"])
    )
    return st.one_of(override, override, override, nested, removed, chosen, devices)


CASES = st.builds(
    lambda env, words: [*TINY, f"env={env}", *words],
    st.sampled_from(ENVIRONMENTS),
    st.lists(overrides(), min_size=1, max_size=3),
)


def find_problems(worker: Worker, max_examples: int, derandomize: bool) -> dict[str, list[str]]:
    """Return, for each kind of problem, the first command line that shows it."""
    problems: dict[str, list[str]] = {}

    @settings(
        max_examples=max_examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(CASES)
    @example([*TINY, "env=cartpole"])
    @example([*TINY, "env=pendulum"])
    @example([*TINY, "env=cartpole", "num_envs=1", "trainer.devices=2"])
    @example([*TINY, "env=cartpole", "trainer.devices=2", "algo.clip_coef=x"])
    @example([*TINY, "env=cartpole", "trainer.devices=7"])
    @example([*TINY, "env=cartpole", "run=64"])
    @example([*TINY, "env=cartpole", "hydra.verbose=x"])
    @example([*TINY, "env=cartpole", "hydra.job.chdir=7"])
    @example([*TINY, "env=cartpole", "hydra.run.dir=null"])
    @example([*TINY, "env=cartpole", "hydra.run.dir=[]"])
    @example([*TINY, "env=cartpole", "hydra.mode=x"])
    @example([*TINY, "env=cartpole", "hydra.output_subdir=null"])
    @example([*TINY, "env=cartpole", "hydra/job_logging=disabled"])
    @example([*TINY, "env=cartpole", "hydra/launcher=nothing"])
    @example([*TINY, "env=cartpole", "hydra.callbacks=null"])
    @example([*TINY, "env=cartpole", "~hydra.run.dir"])
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
def test_any_override_runs_or_ends_in_one_line(worker: Worker) -> None:
    assert not find_problems(worker, 30, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_thousands_of_overrides(worker: Worker) -> None:
    """FUZZ_EXAMPLES says how many; each run draws others."""
    examples = int(os.environ.get("FUZZ_EXAMPLES", "3000"))
    assert not find_problems(worker, examples, derandomize=False)


@pytest.mark.slow
def test_a_crash_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, each time in a new process; the next case is judged as ever."""
    (tmp_path / "crash.py").write_text("import os\nos.abort()\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    worker = Worker(timeout=60)
    crash = worker.problem([*TINY, "env=gymnasium", "env.id=crash:Env-v0"])
    assert crash == f"the process died with status {-signal.SIGABRT}"
    assert worker.problem([*TINY, "env=nothing"]) is None
    assert worker.restarts == 3
    worker.close()
