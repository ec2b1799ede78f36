"""Options and settings of all tests."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        action="append",
        help="directory of recorded runs of the originals, *.npz; those of tests/ by default",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Compiled graphs are shared by all workers of a session, and by nothing else."""
    if not hasattr(config, "workerinput"):  # the process that starts pytest-xdist's workers
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
