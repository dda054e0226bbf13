"""A conflict of settings names the variables that set one of them, and the file only where it sets one."""

import pytest

from configs.errors import ConfigError
from configs.load import load_settings

FILE = "classes: camvid\nwatch: {folder: drop}\nnetwork: {name: deeplabv2}\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"MFMD_CONTROL__PORT": "8100", "MFMD_SERVING__PORT": "8100"},
            ("environment: MFMD_SERVING__PORT, MFMD_CONTROL__PORT: control.port and serving.port are both 8100",),
        ),
        ({"MFMD_SERVING__PORT": "8008"}, ("environment: MFMD_SERVING__PORT: control.port and serving.port",)),
        ({"MFMD_WATCH__AFTER_COMMIT": "move"}, ("environment: MFMD_WATCH__AFTER_COMMIT: watch: after_commit",)),
        (
            {"MFMD_CONTROL__CERTIFICATE": "/x"},
            ("environment: MFMD_CONTROL__CERTIFICATE: control",),
        ),
        (
            {"MFMD_ROUND__SEED": "1", "MFMD_ROUND__ADVANCED__SEED": "2"},
            ("environment: MFMD_ROUND__SEED, MFMD_ROUND__ADVANCED__SEED: round.seed is now",),
        ),
        ({"MFMD_MASKS__FOLDER": "drop"}, ("mfmd.yaml: ", "(set by MFMD_MASKS__FOLDER)")),
        ({"MFMD_STATE": "drop"}, ("mfmd.yaml: ", "(set by MFMD_STATE)")),
        ({"MFMD_STATE": "m", "MFMD_MASKS__FOLDER": "m"}, ("environment: MFMD_STATE, MFMD_MASKS__FOLDER: ",)),
        ({"MFMD_STATE": "mfmd.yaml"}, ("environment: MFMD_STATE: state: ", "mfmd.yaml is a file")),
        ({"MFMD_STATE": "elsewhere", "MFMD_ROUND__STEPS": "-1"}, ("environment: MFMD_ROUND__STEPS: round.steps",)),
    ],
)
def test_the_variables_that_disagree_are_named(tmp_path, monkeypatch, variables, said) -> None:
    path = tmp_path / "mfmd.yaml"
    path.write_text(FILE)
    load_settings(path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert all(part in str(error.value) for part in said), error.value
