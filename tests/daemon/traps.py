"""A directory full of modules that no process of mfmd may import."""

import sys
from pathlib import Path

TRAP = "open({!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(7)\n"
MODULES = {
    *sys.stdlib_module_names, "configs", "storage", "adapters", "daemon", "sitecustomize", "usercustomize", "torch",
    "accelerate", "numpy", "PIL", "pydantic", "yaml", "uvicorn", "fastapi", "structlog", "psutil", "zarr",
    "transformers", "safetensors", "httpx", "av", "watchdog", "kornia", "typer", "click", "rich",
}  # fmt: skip


class Traps:
    """The directory, and what was imported from it."""

    def __init__(self, parent: Path) -> None:
        self.folder, self._imported = parent / "here", parent / "imported"
        self.folder.mkdir()
        for name in MODULES:
            (self.folder / f"{name}.py").write_text(TRAP.format(str(self._imported)))

    @property
    def imported(self) -> str:
        """Names of the modules that were imported."""
        return self._imported.read_text() if self._imported.exists() else ""
