"""Every command in the documentation is one that exists: its options are known, its values fit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from ppo1_lightning.commands import config as cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# `report` and `tune` read their arguments themselves; examples have a test of their own.
COMMAND = re.compile(
    r"^ {4,}.*python -m (ppo1_lightning)((?:\.(?:evaluate|record|play|export))?)( [^#\n]*)?",
    re.MULTILINE,
)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            if "everything is in" in match[0] or "error:" in match[0] or "--config-dir" in match[0]:
                continue  # what a command printed; an example's own configs
            found.append((match[2].lstrip(".") or "train", (match[3] or "").strip()))
    return sorted(set(found))


def test_commands_are_found() -> None:
    assert len(commands()) > 30
    assert {config for config, _ in commands()} == {"train", "evaluate", "record", "play", "export"}


@pytest.mark.parametrize(("config", "words"), commands())
def test_command_composes(config: str, words: str) -> None:
    overrides = [word for word in shlex.split(words) if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    assert "-m" in words or "experiment=" in words or len(batches) == 1
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        for batch in batches:
            hydra.compose(config, batch, return_hydra_config=True)
