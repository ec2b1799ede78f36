"""The shape of the package; the order of its floors is import-linter's part, in `make lint`."""

from __future__ import annotations

import ast
import csv
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ppo1_lightning"
MOST_LINES = {".py": 300, ".cpp": 350, ".h": 350}


def test_files_are_short_enough_to_read() -> None:
    longer = set()
    for suffix, most in MOST_LINES.items():
        files = list(PACKAGE.rglob(f"*{suffix}"))
        assert files
        longer |= {file for file in files if len(file.read_text().splitlines()) > most}
    assert not longer


def test_everything_has_its_floor() -> None:
    """By name, so that a new folder's place is decided and not found out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    named = [name.strip() for floor in contract["layers"] for name in floor.split("|")]
    files = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/**/*.py")}
    assert sorted(named) == sorted(files | folders)


@pytest.mark.parametrize(
    "folder",
    sorted({f"{file.parent.relative_to(ROOT)}" for file in PACKAGE.rglob("*.py")}),
)
def test_a_folder_says_what_it_holds(folder: str) -> None:
    source = (ROOT / folder / "__init__.py").read_text()
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.heavy
@pytest.mark.parametrize("algo", ["classic", "trpo_classic"])
def test_without_what_is_only_speed_it_trains_the_same(algo: str, tmp_path: Path) -> None:
    rows = []
    for without in ("sys.modules['ppo1_lightning.fast'] = None", "pass"):
        code = f"import sys; {without}; from ppo1_lightning.__main__ import main; main()"
        folder = tmp_path / str(len(rows))
        words = f"env=cartpole algo={algo} total_steps=2048 trainer=cpu hydra.run.dir={folder}"
        compiled = "compile=auto" if without != "pass" else "compile=false"
        done = subprocess.run(
            [sys.executable, "-c", code, *words.split(), compiled],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        with (folder / "csv" / "metrics.csv").open() as file:
            rows.append([{**row, "steps_per_second": 0} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
