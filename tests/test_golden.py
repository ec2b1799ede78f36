"""The update equals the original authors' code, on every execution path and on 1 and 2 ranks.

``pytest tests/test_golden.py --golden-dir DIR`` replays other recordings of the same form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_replay import Recording, names_of, replay, replay_on_ranks, to_theirs

PATHS: dict[str, Any] = {"eager": False, "traced": "trace", "compiled": True}
METRICS = ("loss/surrogate", "loss/entropy_penalty", "loss/value", "kl", "entropy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" not in metafunc.fixturenames:
        return
    recordings = Recording.find(Path(str(metafunc.config.getoption("--golden-dir"))))
    cases = [
        pytest.param(recording, path, ranks, id=f"{recording.name}-{path}-{ranks}")
        for recording in recordings
        for path in PATHS
        for ranks in (1, 2)
        if len(recording.workers) % ranks == 0
    ]
    metafunc.parametrize(("recording", "path", "ranks"), cases)


@pytest.fixture(scope="session")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Replay all recordings that two ranks can share in one pair of processes for each path."""
    recordings = [
        recording
        for recording in Recording.find(Path(str(request.config.getoption("--golden-dir"))))
        if len(recording.workers) % 2 == 0
    ]
    results: dict[str, Any] = {}

    def of(path: str) -> Any:
        if path not in results:
            output = tmp_path_factory.mktemp(path)
            results[path] = replay_on_ranks(recordings, 2, output, compile=PATHS[path])
        return results[path]

    return of


def test_update_equals_original(
    recording: Recording, path: str, ranks: int, two_ranks: Any
) -> None:
    by_rank = (
        two_ranks(path)[recording.name] if ranks == 2 else [replay(recording, compile=PATHS[path])]
    )
    for iterations in by_rank:
        assert len(iterations) == recording.iterations > 0
        for i, ours in enumerate(iterations):
            assert ours["path"] == path
            check_parameters(recording, i, ours)
            check_normalizer(recording, i, ours)
            check_metrics(recording, i, ours["metrics"])
    for i in range(recording.iterations):
        for ours, theirs in (("advantages", "adv"), ("returns", "tdlamret")):
            both = np.concatenate([rank[i][ours].numpy() for rank in by_rank])
            assert_close(both, recording.all(i, theirs), f"{i}/{theirs}", relative=True)


def check_parameters(recording: Recording, i: int, ours: dict[str, Any]) -> None:
    recorded = recording.parameters(i + 1)
    for name, theirs in names_of(recording.make()).items():
        parameter = to_theirs(ours["parameters"][name].numpy())
        if f"{theirs}/every97th" in recorded:
            assert_close(parameter[::97], recorded[f"{theirs}/every97th"], theirs)
            norm = np.linalg.norm(parameter.astype(np.float64))
            assert_close(norm, recorded[f"{theirs}/l2"], f"{theirs}/l2", relative=True)
        else:
            assert_close(parameter, recorded[theirs].flatten(), theirs)


def check_normalizer(recording: Recording, i: int, ours: dict[str, Any]) -> None:
    recorded = recording.parameters(i + 1)
    names = {"sum": "runningsum", "sum_squares": "runningsumsq", "count": "count"}
    if ours["normalizer"]:
        for name, theirs in names.items():
            assert_close(ours["normalizer"][name].numpy(), recorded[f"obfilter/{theirs}"], theirs)


def check_metrics(recording: Recording, i: int, ours: dict[str, float]) -> None:
    recorded = recording.workers[0][f"{i}/meanlosses"]
    for name, theirs in zip(METRICS, recorded, strict=True):
        assert_close(ours[name], theirs, f"{i}/{name}", relative=True)
    # The original states the explained variance of each worker's segment, we that of all.
    values, targets = recording.all(i, "seg/vpred"), recording.all(i, "tdlamret")
    expected = 1 - np.var(targets - values, dtype=float) / np.var(targets, dtype=float)
    assert_close(ours["explained_variance"], expected, f"{i}/ev", relative=True)
    if len(recording.workers) == 1:
        assert_close(expected, recording.workers[0][f"{i}/ev"], f"{i}/ev", relative=True)


def assert_close(ours: Any, theirs: Any, name: str, *, relative: bool = False) -> None:
    """1e-6 absolute, plus 1e-6 relative for quantities that are not of order 1."""
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6 if relative else 0, err_msg=name)
