"""The update equals the original authors' code, on every execution path and on 1 and 2 ranks.

Recorded are openai/baselines' ``ppo1`` (``golden``), ``ppo2`` and ``a2c`` at commit ea25b9e, and
its ``trpo_mpi`` (``golden_trpo``) at 3cc7df0, the last one whose TRPO has ppo1's policy. ``pytest
tests/test_golden.py --golden-dir DIR`` replays other recordings, of any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recordings import Recording, to_ours, to_theirs
from golden_replay import make, replay, replay_on_ranks
from golden_vectorized import VectorizedRecording, find

from ppo1_lightning.commands.arithmetic import matmul_precision

PATHS: dict[str, Any] = {"eager": False, "traced": "trace", "compiled": True}
NAMES = ("golden", "golden_trpo", "golden_ppo2", "golden_a2c")
DIRECTORIES = [Path(__file__).parent / name for name in NAMES]
TRACED = (
    "mlp_box",
    "mlp_multidiscrete",
    "cnn_small_black",
    "trpo_box",
    "ppo2_vecnormalize",
    "a2c_box",
)
COMPILED = ("mlp_box", "cnn_small_discrete", "trpo_box")
"""Recordings that are replayed on the compiled path too each time."""

METRICS = ("loss/surrogate", "loss/entropy_penalty", "loss/value", "kl", "entropy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" not in metafunc.fixturenames:
        return
    recordings = recordings_of(metafunc.config)
    cases = [
        pytest.param(
            recording,
            path,
            ranks,
            id=f"{recording.name}-{path}-{ranks}",
            marks=marks_of(recording.name, path, ranks),
        )
        for recording in recordings
        for path in PATHS
        for ranks in (1, 2)
        if len(recording.workers) % ranks == 0
    ]
    metafunc.parametrize(("recording", "path", "ranks"), cases)


def marks_of(name: str, path: str, ranks: int) -> list[pytest.MarkDecorator]:
    """On one rank, a graph takes seconds to trace, half a minute to compile; on two, processes."""
    each_time = {"eager": [name], "traced": TRACED, "compiled": COMPILED}
    if (ranks > 1 and path != "traced") or (ranks == 1 and name not in each_time[path]):
        return [pytest.mark.slow]
    return [pytest.mark.heavy] if path != "eager" or "cnn" in name else []


def recordings_of(config: pytest.Config) -> list[Recording]:
    directories = config.getoption("--golden-dir") or DIRECTORIES
    return [recording for place in directories for recording in find(Path(place))]


@pytest.fixture(scope="session")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Replay all recordings that two ranks can share in one pair of processes for each path."""
    recordings = [r for r in recordings_of(request.config) if len(r.workers) % 2 == 0]
    results: dict[str, Any] = {}

    def of(path: str) -> Any:
        if path not in results:
            output = tmp_path_factory.mktemp(path)
            results[path] = replay_on_ranks(recordings, 2, output, compile=PATHS[path])
        return results[path]

    return of


def test_update_equals_original(
    recording: Recording, path: str, ranks: int, two_ranks: Any, pytestconfig: pytest.Config
) -> None:
    if ranks == 2:
        by_rank = two_ranks(path)[recording.name]
    else:
        accelerator = str(pytestconfig.getoption("--accelerator"))
        with matmul_precision("highest"):
            by_rank = [replay(recording, accelerator=accelerator, compile=PATHS[path])]
    for iterations in by_rank:
        assert len(iterations) == recording.iterations > 0
        for i, ours in enumerate(iterations):
            assert ours["path"] == path
            check_parameters(recording, i, ours)
            if isinstance(recording, VectorizedRecording):
                check_vectorized(recording, i, ours)
                continue
            check_normalizer(recording, i, ours)
            check_metrics(recording, i, ours["metrics"])
            if recording.algorithm == "trpo":
                assert ours["intermediates"]["by_graphs"] == (path != "eager")
                check_step(recording, i, ours["intermediates"])
    if isinstance(recording, VectorizedRecording):
        check_optimizer(recording, by_rank[0][-1]["intermediates"]["state"])
        return
    for i in range(recording.iterations):
        for ours, theirs in (("advantages", "adv"), ("returns", "tdlamret")):
            both = np.concatenate([rank[i][ours].numpy() for rank in by_rank])
            assert_close(both, recording.all(i, theirs), f"{i}/{theirs}", relative=True)


def test_weights_start_as_theirs(pytestconfig: pytest.Config) -> None:
    """ppo2's and a2c's are orthogonal: of the same singular values, whatever is drawn."""
    for recording in recordings_of(pytestconfig):
        if not isinstance(recording, VectorizedRecording) or recording.config["policy"] == "cnn":
            continue
        spaces = recording.observation_space(), recording.action_space()
        policy = recording.policy()(*spaces, initialization="orthogonal")
        for name, theirs in recording.names(policy).items():
            ours = policy.get_parameter(name).detach()
            start = torch.from_numpy(to_ours(recording.initial(theirs), ours.shape))
            pair = (ours, start) if ours.ndim < 2 else map(torch.linalg.svdvals, (ours, start))
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6, msg=name)


def check_parameters(recording: Recording, i: int, ours: dict[str, Any]) -> None:
    recorded = recording.parameters(i + 1)
    for name, theirs in recording.names(make(recording).policy).items():
        parameter = to_theirs(ours["parameters"][name].numpy())
        if f"{theirs}/every97th" in recorded:
            assert_close(parameter[::97], recorded[f"{theirs}/every97th"], theirs)
            norm = np.linalg.norm(parameter.astype(np.float64))
            assert_close(norm, recorded[f"{theirs}/l2"], f"{theirs}/l2", relative=True)
        else:
            tolerance = 1e-6 if theirs.startswith("vf") else recording.config.get("tolerance", 1e-6)
            assert_close(parameter, recorded[theirs].flatten(), theirs, absolute=tolerance)


def check_normalizer(recording: Recording, i: int, ours: dict[str, Any]) -> None:
    recorded = recording.parameters(i + 1)
    names = {"sum": "runningsum", "sum_squares": "runningsumsq", "count": "count"}
    if ours["normalizer"]:
        for name, theirs in names.items():
            assert_close(ours["normalizer"][name].numpy(), recorded[f"obfilter/{theirs}"], theirs)


def check_metrics(recording: Recording, i: int, ours: dict[str, float]) -> None:
    recorded = recording.workers[0][f"{i}/meanlosses"]
    if recording.algorithm == "ppo":
        for name, theirs in zip(METRICS, recorded, strict=True):
            assert_close(ours[name], theirs, f"{i}/{name}", relative=True)
    elif recording.workers[0][f"{i}/accepted"]:  # they are of the last step that was tried
        _, kl, bonus, surrogate, entropy = recorded
        theirs = {"kl": kl, "entropy": entropy, "loss/entropy_penalty": -bonus}
        theirs["loss/surrogate"] = -surrogate
        for name, value in theirs.items():
            close_after_a_step(ours[name], value, kl, f"{i}/{name}")
    # The original states the explained variance of each worker's segment, we that of all.
    values, targets = recording.all(i, "seg/vpred"), recording.all(i, "tdlamret")
    expected = 1 - np.var(targets - values, dtype=float) / np.var(targets, dtype=float)
    assert_close(ours["explained_variance"], expected, f"{i}/ev", relative=True)
    if len(recording.workers) == 1:
        assert_close(expected, recording.workers[0][f"{i}/ev"], f"{i}/ev", relative=True)


def check_step(recording: Recording, i: int, ours: dict[str, Any]) -> None:
    """The policy's step: what led to it, and what the line search saw."""
    recorded = {k.removeprefix(f"{i}/"): v for k, v in recording.workers[0].items()}
    # Of a vector of length 1. Ten conjugate gradient steps multiply float32's rounding: also exact
    # arithmetic differs from the recorded directions, by up to 1.5e-6.
    for name, tolerance in (("gradient", 1e-6), ("stepdir", 3e-6)):
        theirs = recorded[name]
        length = np.linalg.norm(theirs)
        assert_close(
            ours[name].numpy() / length, theirs / length, f"{i}/{name}", absolute=tolerance
        )
    tolerance = recording.config.get("tolerance", 1e-6)
    assert_close(
        ours["fullstep"].numpy(), recorded["fullstep"], f"{i}/fullstep", absolute=tolerance
    )
    expected = (ours["gradient"] @ ours["fullstep"]).item()
    assert_close(expected, recorded["expectedimprove"], f"{i}/expectedimprove", relative=True)
    assert ours["stepsize"] == recorded["stepsize"]
    assert ours["accepted"] == recorded["accepted"]
    assert_close(ours["before"], recorded["lossbefore"][0], f"{i}/lossbefore", relative=True)
    kl = recorded["meanlosses"][1]
    for after, theirs in zip(ours["after"], recorded["meanlosses"], strict=False):
        close_after_a_step(after, theirs, kl, f"{i}/meanlosses")


TERMS = ("loss/surrogate", "loss/value", "entropy", "approx_kl", "clip_fraction")


def check_vectorized(recording: VectorizedRecording, i: int, ours: dict[str, Any]) -> None:
    """ppo2 and a2c: what led to the steps, and what each of them was."""
    kept, steps, envs = ours["intermediates"], *recording.of(i, "seg/rew").shape
    rows = recording.order(i)[:-1].reshape(len(kept["minibatches"]), -1).numpy()
    assert_close(ours["shown"].numpy(), recording.shown(i), f"{i}/ob")
    assert_close(kept["rewards"].numpy(), recording.of(i, "seg/rew"), f"{i}/rew")
    for name, theirs in (("advantages", "adv"), ("returns", "returns")):
        assert_close(ours[name].numpy().T, recording.of(i, theirs), f"{i}/{theirs}", relative=True)
    assert kept["learning_rate"] == pytest.approx(float(recording.of(i, "lr")), rel=1e-12)
    losses = recording.of(i, "losses").reshape(len(rows), -1)
    norms = recording.of(i, "grad_norm").reshape(len(rows))
    for m, (minibatch, theirs) in enumerate(zip(kept["minibatches"], losses, strict=True)):
        measured = [minibatch[name] for name in TERMS[: losses.shape[1]]]
        if recording.algorithm == "ppo2":
            measured[1] /= 2
            negative = recording.of(i, "seg/neglogp").reshape(steps * envs)[rows[m]]
            close_to_float32(minibatch["old_log_probs"], -negative, f"{i}/neglogp/{m}")
            close_to_float32(minibatch["advantages"], recording.of(i, "mbadv")[m], f"{i}/mbadv/{m}")
        else:  # without a ratio: the gradient is the same
            measured[0] = -(minibatch["advantages"] * minibatch["old_log_probs"]).mean()
        values = recording.of(i, "seg/vpred").reshape(steps * envs)[rows[m]]
        close_to_float32(minibatch["old_values"], values, f"{i}/vpred/{m}")
        close_to_float32(measured, theirs, f"{i}/losses/{m}")
        close_to_float32(minibatch["grad_norm"], norms[m], f"{i}/grad_norm/{m}")
    if recording.algorithm == "ppo2":
        cliprange = float(recording.of(i, "cliprange"))
        assert kept["clip_coef"] == kept["value_clip"] == pytest.approx(cliprange, rel=1e-12)
    for kind, statistics in kept["statistics"].items():
        for name, theirs in (("mean", "mean"), ("variance", "var"), ("count", "count")):
            expected = recording.of(i, f"stats_after/{kind}_{theirs}")
            assert_close(statistics[name].numpy(), expected, f"{i}/{kind}_{theirs}", relative=True)
    if "ret" in kept["statistics"]:
        expected = recording.of(i, "stats_after/ret")
        assert_close(kept["under_way"], expected, f"{i}/ret", relative=True)


def check_optimizer(recording: VectorizedRecording, state: dict[str, Any]) -> None:
    """What the optimizer keeps, at the end; Adam's moments relative to their variable's largest."""
    last, kinds = recording.iterations, ("adam_m", "adam_v", "rmsprop_ms")
    found = 0
    for kind, ours in zip(kinds, ("exp_avg", "exp_avg_sq", "square_avg"), strict=True):
        for name, theirs in recording.names(make(recording).policy).items():
            key = f"{kind}/{theirs}"
            every = 97 if recording.has(last, f"{key}/every97th") else 1
            key += "/every97th" if every > 1 else ""
            if recording.has(last, key):
                found += 1
                expected = recording.of(last, key).flatten()
                moments = to_theirs(state[name][ours].numpy())[::every]
                scale = 1.0 if kind == "rmsprop_ms" else 50 * np.abs(expected).max()
                assert_close(moments, expected, key, absolute=1e-6 * scale)
    assert found


def close_to_float32(ours: Any, theirs: Any, name: str) -> None:
    """2e-6, what a float32 replay of the authors' code in another order of sums is off by."""
    np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=2e-6, err_msg=name)


def close_after_a_step(ours: float, theirs: float, kl: float, name: str) -> None:
    """1e-6; of a policy more than 1 nat away ten times that, relative.

    There single rows have ratios of hundreds: float32 itself is no closer.
    """
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6 if kl < 1 else 1e-5, err_msg=name)


def assert_close(
    ours: Any, theirs: Any, name: str, *, absolute: float = 1e-6, relative: bool = False
) -> None:
    """1e-6 absolute, plus 1e-6 relative for quantities that are not of order 1."""
    rtol = 1e-6 if relative else 0
    np.testing.assert_allclose(ours, theirs, atol=absolute, rtol=rtol, err_msg=name)
