"""docs/reference/errors.md and the code name the same stable codes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "storage", "adapters", "daemon")
CODED = {"ApiError": 1, "_error": 1, "RefusedImage": 0, "Skip": 0, "InvalidBody": 0}
"""Which argument of a call carries a code (for RefusedImage: the reason, which the HTTP API answers as code)."""


def codes(tree: ast.AST) -> Iterator[str]:
    """Yield the codes that stand in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code":
                    yield ast.literal_eval(line.value)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HTTP_CODES":
            yield from ast.literal_eval(node.value).values()
        if isinstance(node, ast.Call):
            place = _place_of_code(node)
            code = node.args[place] if place is not None and len(node.args) > place else None
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                yield code.value


def _place_of_code(call: ast.Call) -> int | None:
    """Which argument of `call` is a code; None when none is."""
    name = ast.unparse(call.func)
    if name == "super().__init__" and call.args and isinstance(call.args[0], ast.Constant):
        return 1 if isinstance(call.args[0].value, int) else None  # a subclass of ApiError: status, code, message
    return CODED.get(name)


def _codes_in_source() -> set[str]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {code for path in paths for code in codes(ast.parse(path.read_text(encoding="utf-8")))}
    return found | {"system", "unexpected", "http_error"}  # for errors that carry no code of their own


def _codes_in_page() -> set[str]:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page, flags=re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    source, page = _codes_in_source(), _codes_in_page()
    assert len(source) > 30
    assert not source - page, f"not in docs/reference/errors.md: {sorted(source - page)}"
    assert not page - source, f"in docs/reference/errors.md, but nowhere in the code: {sorted(page - source)}"


def test_codes_are_stable_words() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", code) for code in _codes_in_source())
