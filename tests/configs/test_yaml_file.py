"""Odd YAML: a key given twice, merges, depth, encodings. What is lost or misread in silence elsewhere is refused."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_settings
from configs.yaml_file import parse_mapping, read_mapping

FILE = Path("mfmd.yaml")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("watch: {a: 1}\nclasses: demo\nwatch: {b: 1}", "watch", (3, 1)),
        ("watch:\n  folder: a\n  advanced:\n    x: 1\n    y: 1\n    x: 1", "x", (6, 4)),
        ("a: {x: 1,\n x: 1}", "x", (2, 1)),
        ("a:\n- b: 1\n- {c: 1, d: 1,\n  c: 2}", "c", (4, 3)),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n  'x': 3", "x", (5, 4)),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "<<", (4, 3)),
        ("? [a, b]\n: 1\n? k\n: 1\n? k\n: 2", "k", (5, 3)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text: str, key: str, lines: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mapping(text, FILE)
    message = str(caught.value)
    assert f"line {lines[0]}, " in message and f"`{key}` stands twice, first in line {lines[1]}" in message


def test_a_key_that_stands_twice_in_json_is_refused() -> None:
    with pytest.raises(ConfigError, match="`b` stands twice"):
        parse_mapping('{"a": {"b": 1, "c": 2, "b": 3}}', Path("mfmd.json"))


def test_anchors_and_merges_mean_what_yaml_says() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, {y: 9, z: 4}]}\nd: *b"
    read = parse_mapping(text, FILE)
    assert read["b"] == read["d"] == {"x": 3, "y": 2}
    assert read["c"] == {"x": 3, "y": 2, "z": 4}
    deep = "c:\n  d: {<<: *none}\n"
    with pytest.raises(ConfigError, match="undefined alias"):
        parse_mapping(deep, FILE)
    early = "a: {b: {c: &c {<<: {x: 1}, x: 2}}}\nd: {<<: *c}"
    assert parse_mapping(early, FILE)["a"]["b"]["c"] == {"x": 2}


def test_a_chain_of_merges_does_not_grow() -> None:
    links = "\n".join(f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 10)}]}}" for n in range(1, 12))
    assert parse_mapping(f"k0: &k0 {{x: 1}}\n{links}", FILE)["k11"] == {"x": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfea\x00:\x00", "not UTF-8 text"),
        ("classes: d\u00e4mo".encode("latin-1"), "not UTF-8 text"),
        (b"- classes\n- watch", "found a list"),
        (b"classes: demo\n---\nwatch: {folder: a}", "another document"),
        (b"watch:\n\tfolder: drop", "line 2"),
        (b"a: " + b"[" * 2_000, "nested too deeply"),
        (b"a: 2026-13-45", "month must be"),
        (b"a: \x00", "special characters"),
        (b"? {a: 1}\n: 2", "unhashable key"),
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mfmd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_mapping(path)
    assert says in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mfmd.yaml"
    for content in (b"", b"# only a comment\n", b"---\n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert read_mapping(path) == {}
    path.write_bytes("\ufeffclasses: demo\r\nwatch:\r\n  folder: 'drop \u00e4'\r\n".encode())
    assert load_settings(path).watch.folder == tmp_path / "drop ä"


@pytest.mark.parametrize("variable", ["", "MFMD_WATCH__ADVANCED__FOLDER"])
def test_an_alias_of_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    path = tmp_path / "mfmd.yaml"
    if variable:
        monkeypatch.setenv(variable, "elsewhere")
    for text in ("classes: &c [*c, *c]", "classes: demo\nwatch: &w {folder: drop, advanced: *w}"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_settings(path)
