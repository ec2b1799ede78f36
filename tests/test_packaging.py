"""What the wheel carries, and what importing the library brings along."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_wheel_carries_configs_and_types(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.build")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = tmp_path / hatchling.build_wheel(str(tmp_path))
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f"{file.relative_to(ROOT)}" for file in ROOT.glob("ppo1_lightning/**/*.py")}
    configs = {f"ppo1_lightning/{file.relative_to(ROOT)}" for file in ROOT.glob("conf/**/*.yaml")}
    assert len(configs) > 40
    files = [*ROOT.glob("ppo1_lightning/**/*.cpp"), *ROOT.glob("ppo1_lightning/**/*.h")]
    sources = {f"{file.relative_to(ROOT)}" for file in files}
    assert {"loop.cpp", "winograd.cpp", "products.h"} <= {file.name for file in files}
    other = {"ppo1_lightning/py.typed", "ppo1_lightning/runs/report/page.html"} | sources
    assert package | configs | other <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "outputs/"))]


@pytest.mark.heavy
@pytest.mark.slow
def test_library_imports_without_hydra_and_simulators() -> None:
    """Lightning comes first: its torchmetrics imports matplotlib wherever that is installed."""
    code = (
        "import sys, lightning; before = set(sys.modules);"
        "from ppo1_lightning import *;"
        "import ppo1_lightning.callbacks, ppo1_lightning.runs.csv_logger;"
        "ours = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted({'hydra', 'omegaconf', 'envpool', 'matplotlib'} & ours))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True, cwd=ROOT).strip() == "[]"


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(pin.count("==") == 1 and "@" not in pin and "+" not in pin for pin in pins)
    assert "torch==2.13.0" in pins
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(name for extra in extras for name in extra)]
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert {re.split(r"[\[<>=]", name)[0] for name in needed} <= pinned
