"""Writes what the pages say of `conf/` from `conf/` itself, while MkDocs builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[1] / "conf"
PLACE = "<!-- the configs -->"


def on_page_markdown(markdown: str, **arguments: Any) -> str:
    """Put every config file where a page asks for them."""
    return markdown.replace(PLACE, reference()) if PLACE in markdown else markdown


def reference() -> str:
    """Return all config files, a section a group."""
    groups = sorted({file.parent for file in CONF.rglob("*.yaml")})
    sections = []
    for group in groups:
        name = group.relative_to(CONF)
        title = f"`{name}/`" if group != CONF else "The command lines"
        files = (_listing(file) for file in sorted(group.glob("*.yaml")))
        sections.append(f"## {title}\n\n" + "\n".join(files))
    return "\n".join(sections)


def _listing(file: Path) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    return f"### {file.stem}\n\n```yaml\n{text}\n```\n"
