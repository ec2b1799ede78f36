"""Commands in the documentation exist, their options are known; so do the tests that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from ppo1_lightning.__main__ import COMMANDS
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ids

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    rf"^ {{4,}}.*python -m ppo1_lightning(?: ({'|'.join(COMMANDS)}))?(?=\s)( [^#\n]*)?",
    re.MULTILINE,
)
CONFIGS = {"tune": "train"}
"""Of the commands that have none of their own."""
TEST = re.compile(r"`((?:tests/[\w/]+\.py)?)::(\w+)(?:\[[^`]*\])?`")


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            if "everything is in" in match[0] or "error:" in match[0] or "--config-dir" in match[0]:
                continue  # what a command printed; an example's own configs
            command, words = match[1] or "train", (match[2] or "").strip()
            if command not in ("report", "envs"):  # they read their arguments themselves
                found.append((CONFIGS.get(command, command), words))
    return sorted(set(found))


def test_commands_are_found() -> None:
    assert len(commands()) > 30
    assert {config for config, _ in commands()} == {"train", "evaluate", "record", "play", "export"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    file = ""
    for match in TEST.finditer(page.read_text("utf-8")):
        file = match[1] or file  # the one named last
        assert re.search(rf"^def {match[2]}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), (
            match
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_the_commands_old_form(page: Path) -> None:
    old = rf"python -m ppo1_lightning\.(?:{'|'.join(COMMANDS)})\b"
    assert not re.findall(old, page.read_text("utf-8"))


@pytest.mark.parametrize(("config", "words"), commands())
def test_command_composes(config: str, words: str) -> None:
    if "hydra/launcher=ray" in words:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="an extra of its own")
    overrides = [word for word in shlex.split(words) if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    assert "-m" in words or "experiment=" in words or len(batches) == 1
    cli.register_resolvers()
    ids.register()
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        for batch in batches:
            hydra.compose(config, batch, return_hydra_config=True)
