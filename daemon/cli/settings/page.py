"""docs/reference/configuration.md, written from the settings' docstrings: `mfmd config schema --markdown`."""

import json
from collections.abc import Iterator

from daemon.cli.settings.reference import REQUIRED, SectionDoc, sections

INTRODUCTION = """\
# Configuration

Written by `mfmd config schema --markdown` from the docstrings in `configs/settings.py`; a test keeps it in step.
Do not edit.

One YAML file, by default `./mfmd.yaml`; another with `--config FILE` or `MFMD_CONFIG`. Relative paths are relative to
that file. Environment variables win over it: `MFMD_` and the keys joined by two underscores, so
`MFMD_WATCH__FOLDER=/drop` sets `watch.folder`; lists and mappings are given as JSON. An unknown key or a wrong value is
refused with one line that names file (or variable) and field, exit code 2.

A running daemon uses the settings of its start, those from the environment included, and so do its children. An edit of
the file changes nothing before `mfmd reload` (or SIGHUP). A reload applies the settings marked (live) and names the
others, which need a restart. A running round keeps the settings of its start, and children read `log` when they start.
`mfmd status` reports how the file differs from the settings in force, and whether it is valid.

The least that works:

```yaml
classes: cityscapes
watch: {folder: drop}
source: {images: source/images, labels: source/labels}
```
"""


def render() -> str:
    """The whole page as markdown."""
    return INTRODUCTION + "".join(f"{line}\n" for section in sections() for line in _section(section))


def _section(section: SectionDoc) -> Iterator[str]:
    title = f"`{'.'.join(section.path)}`" if section.path else "Top level"
    optional = " Leave the section out when there is none." if section.optional else ""
    yield from ("", f"## {title}", "", f"{section.description}{optional}", "")
    yield from ("| key | default | value | meaning |", "|---|---|---|---|")
    for setting in section.settings:
        default = "**required**" if setting.default is REQUIRED else f"`{json.dumps(setting.default)}`"
        live = " (live)" if setting.live else ""
        cells = (f"`{setting.path[-1]}`{live}", default, setting.kind, setting.description)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
