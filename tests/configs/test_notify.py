"""Webhooks in a configuration: as the page shows them, and wrong ones without their secret."""

import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_settings
from configs.notify import NOTIFY_EVENTS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "notifications.md"
LEAST = "classes: demo\nwatch: {folder: drop}\n"


def test_the_example_of_the_page_is_read_although_yaml_means_true_by_on(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "mfmd.yaml").write_text(LEAST + block, encoding="utf-8")
    [webhook] = load_settings(tmp_path / "mfmd.yaml").notify
    assert (webhook.on, webhook.host) == (NOTIFY_EVENTS, "hooks.example.org")


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ("{url: 'ftp://host/SECRET'}", "notify.0.url"),
        ("{url: 'host/SECRET'}", "notify.0.url"),
        ("{url: 'https://host:port/SECRET'}", "notify.0.url"),
        ("{url: 'https://host/SECRET', on: [promotion]}", "notify.0.on.0"),
        ("{url: 'https://host/SECRET', on: []}", "notify.0.on"),
        ("{url: 'https://host/SECRET', event: drift}", "notify.0.event"),
        ("{on: [drift]}", "notify.0.url"),
    ],
)
def test_a_wrong_webhook_is_refused_by_field_without_its_secret(tmp_path: Path, webhook: str, field: str) -> None:
    (tmp_path / "mfmd.yaml").write_text(f"{LEAST}notify:\n  - {webhook}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "mfmd.yaml")
    assert f"{field}: " in str(refused.value)
    assert "SECRET" not in str(refused.value)
