"""The pages "Add a ..." of docs/how-to hold: every step is taken in a copy of the tree, and the result runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/how-to/add-a*.md"))
STEP = re.compile(r"(?:New file|Change) `([\w/.]+)`|```(python|diff)\n(.*?)```", re.DOTALL)
LONGEST = 100
"""Lines of code that a page may ask for."""


class Step(NamedTuple):
    """A code block of a page."""

    kind: str
    """python: the whole file; diff: a change to it."""
    file: str
    """Path from the root."""
    code: str
    """The block."""


def steps(page: Path) -> list[Step]:
    """The code blocks of a page; the text before each names its file."""
    found, file = [], ""
    for named, kind, code in STEP.findall(page.read_text(encoding="utf-8")):
        if named:
            file = named
        else:
            found.append(Step(kind, file, code))
    return found


def take(step: Step, tree: Path) -> None:
    """Do in `tree` what the step says."""
    path = tree / step.file
    if step.kind == "python":
        assert not path.exists(), f"{step.file} exists already"
        path.write_text(step.code, encoding="utf-8")
        return
    lines = step.code.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{step.file} has {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in which the steps of every page were taken."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ("configs", "storage", "adapters", "daemon", "tests"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for page in PAGES:
        for step in steps(page):
            take(step, copy)
    return copy


def test_the_four_pages_are_there() -> None:
    assert [page.stem for page in PAGES] == [
        "add-a-network", "add-a-recipe", "add-a-score", "add-an-admission-policy"
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_asks_for_little_code(page: Path) -> None:
    asked = [line for step in steps(page) for line in step.code.splitlines() if step.kind == "python" or line[0] == "+"]
    assert 0 < len(asked) < LONGEST


def test_the_tests_of_the_pages_pass_and_the_code_is_in_style(tree: Path) -> None:
    made = [step.file for page in PAGES for step in steps(page)]
    tests = [file for file in made if file.startswith("tests/")]
    assert len(tests) == len(PAGES)
    environment = {"PYTHONPATH": str(tree), "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    for command in (
        ["ruff", "check", *sorted(set(made))],
        ["ruff", "format", "--check", *sorted(set(made))],
        ["pytest", "-q", "-p", "no:cacheprovider", *tests],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tree, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
