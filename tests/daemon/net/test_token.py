"""Where tokens come from, who may read them, and how they are compared."""

import stat

import pytest

from configs.errors import ConfigError
from daemon.net.token import control_token, same_token

TOKEN = "correct horse"


def test_the_token_is_made_once_and_only_its_owner_may_read_it(make_settings, layout):
    token = control_token(make_settings().control, layout)
    assert len(token) >= 32
    assert control_token(make_settings().control, layout) == token
    assert stat.S_IMODE(layout.token_file.stat().st_mode) == 0o600
    layout.token_file.write_text("")
    assert control_token(make_settings().control, layout) != token


def test_the_token_comes_from_settings_or_a_file(make_settings, layout, tmp_path):
    assert control_token(make_settings(control={"token": "abc"}).control, layout) == "abc"
    file = tmp_path / "token"
    file.write_text("from a file\n")
    assert control_token(make_settings(control={"token_file": file}).control, layout) == "from a file"
    file.write_text(" \n")
    with pytest.raises(ConfigError, match=r"control\.token_file: .* is empty"):
        control_token(make_settings(control={"token_file": file}).control, layout)
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        control_token(make_settings(control={"token_file": file}).control, layout)
    assert not layout.token_file.exists()


def test_tokens_are_compared_whole():
    assert same_token("abc", "abc")
    assert not same_token("ab", "abc")
    assert not same_token("é", "abc")
