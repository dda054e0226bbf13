"""Every link between pages leads to a file and a heading that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchor of each heading, as GitHub forms it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target) if target else page
        assert file.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{link}: no such heading"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_every_page_named_in_the_tree_exists() -> None:
    """Code and pages name other pages by their path from the root."""
    rooms = ("configs", "storage", "adapters", "daemon", "benchmarks", "docs", "deploy")
    files = [
        file for room in rooms for kind in ("*.py", "*.yaml", "*.yml", "*.md") for file in (ROOT / room).rglob(kind)
    ]
    for file in [*files, *ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        for name in re.findall(r"(?<![\w/.])docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_named_in_a_page_exists(page: Path) -> None:
    """Pages name files of the tree by their path from the root; the pages "Add a ..." also name files to be made."""
    named = set(
        re.findall(r"`((?:configs|storage|adapters|daemon|benchmarks|tests)/[\w./-]*)`", page.read_text("utf-8"))
    )
    made = set(re.findall(r"New file `([\w/.]+)`", page.read_text("utf-8")))
    missing = sorted(name for name in named - made if not ((ROOT / name).exists() or (ROOT / "tests" / name).exists()))
    assert not missing


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "configuration.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    """Tables, code blocks and single long words may be wider; the settings reference is generated."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    wide = [
        line
        for line in prose.splitlines()
        if len(line) > 120 and " " in line.strip() and line[:1] != "|" and line[:4] != "    "
    ]
    assert not wide
