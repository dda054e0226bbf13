"""Which settings a reload changes, and what a reload makes of two sets of settings."""

import pytest
from pydantic import ValidationError

from configs.live import LIVE, changed, is_live, with_live
from configs.settings import Settings


def _settings(**sections: object) -> Settings:
    return Settings.model_validate({"classes": "demo", "watch": {"folder": "/drop"}, **sections})


def test_every_live_name_is_a_setting() -> None:
    now = _settings()
    for name in LIVE:
        value: object = now
        for part in name.split("."):
            value = getattr(value, part)
    assert is_live("gate.confidence") and is_live("gate") and not is_live("serving.port") and not is_live("watch.mode")


def test_differences_are_named() -> None:
    now = _settings()
    wanted = _settings(
        gate={"confidence": 0.8}, serving={"port": 1}, source={"images": "/i", "labels": "/l"}, control={"token": "x"}
    )
    assert sorted(changed(now, wanted)) == ["control.token", "gate.confidence", "serving.port", "source"]
    assert list(changed(now, _settings())) == []


def test_only_live_settings_are_taken_over() -> None:
    now = _settings(serving={"token": "secret"})
    wanted = _settings(
        watch={"folder": "/other", "stability_seconds": 9}, gate={"confidence": 0.8}, serving={"port": 1}
    )
    taken = with_live(now, wanted)
    assert (taken.gate.confidence, taken.watch.stability_seconds) == (0.8, 9)
    assert (taken.watch.folder, taken.serving) == (now.watch.folder, now.serving)
    assert sorted(changed(taken, wanted)) == ["serving.port", "serving.token", "watch.folder"]


def test_live_settings_that_need_one_that_is_not_live_are_refused() -> None:
    wanted = _settings(gate={"shadow_images": 5}, serving={"shadow_fraction": 0.5})
    with pytest.raises(ValidationError, match=r"needs serving\.shadow_fraction"):
        with_live(_settings(), wanted)
