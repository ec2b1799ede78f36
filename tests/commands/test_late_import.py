"""A module that is loaded when it is used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppo1_lightning.commands.late_import import import_late

SOURCE = "import sys\nsys.late_loads = getattr(sys, 'late_loads', 0) + 1\nvalue = 3\n"


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module that counts how often it is executed."""
    (tmp_path / "counted_late.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "late_loads", 0, raising=False)
    monkeypatch.delitem(sys.modules, "counted_late", raising=False)
    import_late("counted_late", known=7)
    yield "counted_late"
    sys.modules.pop("counted_late", None)


def loads() -> int:
    return getattr(sys, "late_loads")  # noqa: B009


def test_is_executed_once_by_the_first_question_for_what_it_lacks(late: str) -> None:
    import counted_late  # pyright: ignore[reportMissingImports]

    assert (counted_late.known, loads()) == (7, 0)
    assert (counted_late.value, counted_late.value, loads()) == (3, 3, 1)
    assert counted_late.known == 7  # as TorchMetrics leaves it
    with pytest.raises(AttributeError, match=r"counted_late.*no attribute 'other'"):
        _ = counted_late.other


def test_another_thread_waits_until_it_is_loaded(late: str, tmp_path: Path) -> None:
    (tmp_path / "counted_late.py").write_text("import time\ntime.sleep(0.2)\n" + SOURCE)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: sys.modules[late].value, range(4)))
    assert (values, loads()) == ([3] * 4, 1)


def test_from_import_and_dir_load_it(late: str) -> None:
    names: dict[str, object] = {}
    exec(f"from {late} import *", names)
    assert (names["value"], loads()) == (3, 1)
    assert "value" in dir(sys.modules[late])


def test_dir_alone_loads_it(late: str) -> None:
    assert "value" in dir(sys.modules[late])
    assert loads() == 1


def test_what_fails_fails_at_each_question(late: str, tmp_path: Path) -> None:
    (tmp_path / "counted_late.py").write_text("raise OSError('no library')")
    for _ in range(2):
        with pytest.raises(OSError, match="no library"):
            _ = sys.modules[late].value


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.part", "json.no_such_part"])
def test_nothing_where_it_is_not_installed(name: str) -> None:
    import_late(name)
    assert name not in sys.modules


def test_what_is_imported_already_stays() -> None:
    before = sys.modules["json"]
    import_late("json")
    assert sys.modules["json"] is before


LIGHTNING = """
import sys
import ppo1_lightning.commands.train
import ppo1_lightning.algorithms
print(type(sys.modules["scipy.signal"]).__name__)
import numpy, scipy.signal
assert abs(scipy.signal.hamming(5)[2] - 1) < 1e-12
assert scipy.signal.butter(2, 0.5)[0].shape == (3,)
from scipy.signal import lfilter
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio
print(type(scipy.signal).__name__)
"""


@pytest.mark.heavy
def test_lightning_does_not_load_scipy_s() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHTNING], capture_output=True, text=True)
    assert done.stdout.split() == ["_Late", "module"], done.stderr
