"""Configuration files: the least that works, environment, paths, and one clear line for each mistake."""

import os
import re
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_settings, state_directory, without_settings
from configs.recipe import MicSettings
from configs.settings import Settings

MINIMAL = """\
classes: cityscapes
watch: {folder: drop}
source: {images: source/images, labels: source/labels}
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "mfmd.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_working_configuration_needs_at_most_ten_lines(tmp_path: Path) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL))
    assert len(MINIMAL.splitlines()) <= 10
    assert settings.state == tmp_path / "state"
    assert settings.watch.folder == tmp_path / "drop"
    assert settings.source is not None and settings.source.labels == tmp_path / "source/labels"
    assert len(settings.classes) == 19


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert load_settings(_write(tmp_path, "classes: demo\nwatch: {folder: /data/drop}")).watch.folder == Path(
        "/data/drop"
    )


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD_WATCH__FOLDER", "/elsewhere")
    monkeypatch.setenv("MFMD_ROUND__OPTIM__LEARNING_RATE", "0.5")
    monkeypatch.setenv("MFMD_CONTROL__TOKEN", "secret")
    settings = load_settings(_write(tmp_path, MINIMAL))
    assert settings.watch.folder == Path("/elsewhere")
    assert settings.round.optim.learning_rate == 0.5
    assert settings.round.optim.head_multiplier == Settings.model_fields["round"].default.optim.head_multiplier
    assert settings.control.token is not None and settings.control.token.get_secret_value() == "secret"
    assert "secret" not in settings.model_dump_json()


def test_classes_may_be_given_in_full(tmp_path: Path) -> None:
    text = "classes: [{name: sky, color: [1, 2, 3]}, {name: road, color: [4, 5, 6]}]\nwatch: {folder: drop}"
    assert [item.name for item in load_settings(_write(tmp_path, text)).classes] == ["sky", "road"]


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("watch: {folder: drop}", "classes", "required"),
        ("classes: demo", "watch", "required"),
        ("classes: demo\nwatch: {}", "watch.folder", "required"),
        ("classes: demo\nwatch: {folder: drop, stabilty_seconds: 3}", "watch.stabilty_seconds", "'stability_seconds'"),
        ("classes: demo\nwatch: {folder: drop}\nrouns: {}", "rouns", "'round'"),
        ("classes: demo\nwatch: {folder: drop}\nround: {steps: 0}", "round.steps", "greater than or equal to 1"),
        ("classes: demo\nwatch: {folder: drop}\nround: {steps: many}", "round.steps", "many"),
        ("classes: demo\nwatch: {folder: drop}\nround: {optim: {lr: 1}}", "round.optim.lr", "unknown key"),
        ("classes: demo\nwatch: {folder: drop}\nserving: {quantize: int8}", "serving.quantize", "mfmd export"),
        (
            "classes: demo\nwatch: {folder: drop}\nserving: {repository_token: a}",
            "serving.repository_token",
            "mfmd promote",
        ),
        ("classes: demo\nwatch: {folder: drop}\nnetwork: {encoder: mit_b9}", "network.encoder", "mit_b0"),
        ("classes: kitti\nwatch: {folder: drop}", "classes", "cityscapes"),
        ("classes: [{name: sky, color: [1, 2, 3]}]\nwatch: {folder: drop}", "classes", "at least 2"),
        (
            "classes: demo\nwatch: {folder: drop}\nsource: {images: a, labels: b, validation_images: c}",
            "source",
            "both",
        ),
        ("classes: demo\nwatch: {folder: drop}\nround: {steps: yes}", "round.steps", "'true'"),
        ("classes: demo\nwatch: {folder: drop}\nround: {max_seconds: on}", "round.max_seconds", "'true'"),
        ("classes: demo\nwatch: {folder: drop}\nserving: {port: true}", "serving.port", "'true'"),
        ("classes: demo\nwatch: {folder: drop}\nrecipe: {ema_decay: no}", "recipe.ema_decay", "'false'"),
        ("classes: demo\nwatch: {folder: drop, stability_seconds: .inf}", "watch.stability_seconds", "finite"),
        ("classes: demo\nwatch: {folder: drop, marker: ~/x}", "watch.marker", "inside it"),
        ("classes: demo\nwatch: {folder: drop, marker: /etc/passwd}", "watch.marker", "inside it"),
        ("classes: demo\nwatch: {folder: drop, marker: ../x}", "watch.marker", "inside it"),
        ("classes: demo\nwatch:", "watch", "required"),
        ("classes: [a", "not valid YAML", ""),
        ("just text", "expected `key: value` lines", ""),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_field(tmp_path: Path, text: str, field: str, says: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ") and field in message and says in message


def test_a_section_with_nothing_below_it_has_its_defaults(tmp_path: Path) -> None:
    names = [name for name in Settings.model_fields if name not in ("state", "classes", "watch")]
    text = "classes: demo\nwatch:\n  folder: drop\n  advanced:\n" + "".join(f"{name}:\n" for name in names)
    assert load_settings(_write(tmp_path, text)) == load_settings(
        _write(tmp_path, "classes: demo\nwatch: {folder: drop}")
    )


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "none.yaml"))):
        load_settings(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00classes")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_settings(binary)


def test_unknown_environment_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD__WATCH__FOLDER", "/x")
    with pytest.raises(ConfigError, match=r"MFMD__WATCH__FOLDER.*unknown"):
        load_settings(_write(tmp_path, MINIMAL))
    monkeypatch.delenv("MFMD__WATCH__FOLDER")
    monkeypatch.setenv("MFMD_WACH__FOLDER", "/x")
    with pytest.raises(ConfigError, match=r"MFMD_WACH__FOLDER.*MFMD_WATCH"):
        load_settings(_write(tmp_path, MINIMAL))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MFMD_SERVICE_HOST", "10.96.0.7"),
        ("MFMD_SERVICE_HOST", "fd00::7"),
        ("MFMD_SERVICE_PORT", "8009"),
        ("MFMD_SERVICE_PORT_HTTP", "8009"),
        ("MFMD_PORT", "tcp://10.96.0.7:8009"),
        ("MFMD_PORT_8009_TCP", "tcp://10.96.0.7:8009"),
        ("MFMD_PORT_8009_TCP_PROTO", "tcp"),
        ("MFMD_PORT_8009_TCP_PORT", "8009"),
        ("MFMD_PORT_8009_TCP_ADDR", "10.96.0.7"),
        ("MFMD_PORT_53_UDP", "udp://10.96.0.7:53"),
        ("MFMD_SERVING_SERVICE_HOST", "10.96.0.7"),
        ("MFMD_SERVING_PORT", "tcp://10.96.0.7:8009"),
        ("MFMD_WATCH_PORT_8009_TCP_ADDR", "10.96.0.7"),
        ("MFMD_NAME", "/web/mfmd"),
        ("MFMD_1_ENV_LANG", "C"),
    ],
)
def test_links_of_services_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    path = _write(tmp_path, MINIMAL)
    before = load_settings(path)
    monkeypatch.setenv(variable, value)
    assert load_settings(path) == before


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MFMD_PORT", "9000", "unknown setting"),
        ("MFMD_SERVING_PORT", "9000", "'MFMD_SERVING__PORT'"),
        ("MFMD_SEVRING__PORT", "9000", "'MFMD_SERVING__PORT'"),
        ("MFMD_CONFG", "x.yaml", "unknown setting"),
        ("MFMD_STAT", "/state", "'MFMD_STATE'"),
        ("MFMD_SERVICE", "x", "unknown setting"),
        ("MFMD_WATCH.FOLDER", "/drop", "'MFMD_WATCH__FOLDER'"),
        ("mfmd_wach__folder", "/drop", "'MFMD_WATCH__FOLDER'"),
        ("MFMD_STATE", "", "is empty; give it a value, or unset it"),
        ("MFMD_CONTROL__TOKEN", "", "is empty; give it a value, or unset it"),
    ],
)
def test_a_misspelled_variable_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings(_write(tmp_path, MINIMAL))
    assert str(caught.value).startswith(f"environment: {variable}: ") and says in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MFMD_WATCH__FODLER", "x", "watch.fodler: unknown key; did you mean 'folder'?"),
        ("MFMD_WATCH", "x", "watch: Input should be"),
        ("MFMD_WATCH__IGNORE", "x", "watch.ignore: Input should be"),
        ("MFMD_ROUND__STEPS", "many", "round.steps: Input should be a valid integer"),
        ("MFMD_CLASSES", "kitti", "classes: no class list 'kitti'"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings(_write(tmp_path, MINIMAL))
    assert str(caught.value).startswith(f"environment: {variable}: {says}")


def test_environment_takes_names_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD_CLASSES", "camvid")
    monkeypatch.setenv("MFMD_WATCH__IGNORE", '["*.bad"]')
    settings = load_settings(_write(tmp_path, MINIMAL))
    assert len(settings.classes) == 11
    assert settings.watch.ignore == ("*.bad",)


def test_yaml_reads_a_bare_no_as_false(tmp_path: Path) -> None:
    """`mixed_precision: no` must mean what it says, although YAML 1.1 calls it a boolean."""
    settings = load_settings(_write(tmp_path, MINIMAL + "round: {mixed_precision: no}\n"))
    assert settings.round.mixed_precision == "no"


def test_a_shadow_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gate\.shadow_images needs serving\.shadow_fraction above 0"):
        load_settings(_write(tmp_path, MINIMAL + "gate: {shadow_images: 100}\n"))
    settings = load_settings(
        _write(tmp_path, MINIMAL + "gate: {shadow_images: 100}\nserving: {shadow_fraction: 0.1}\n")
    )
    gate = settings.gate
    assert (gate.shadow_images, gate.advanced.shadow_seconds, gate.advanced.shadow_agreement) == (100, 600, 0.3)


def test_a_buffer_too_small_for_the_recipe_is_refused(tmp_path: Path) -> None:
    text = MINIMAL + "recipe: {name: mfm_da, advanced: {target_images: 20}}\nbuffer: {capacity_frames: %d}\n"
    with pytest.raises(ConfigError, match=r"target_images: a round would need 20 .* holds 19 \(buffer.capacity_frames"):
        load_settings(_write(tmp_path, text % 19))
    assert load_settings(_write(tmp_path, text % 20)).recipe.least_frames() == 20


@pytest.mark.parametrize(
    ("section", "key", "says"),
    [
        ("recipe", "masked_image_weight: 1", "recipe.masked_image_weight: a setting of mic; recipe.name is dacs"),
        (
            "recipe",
            "name: tent, ema_decay: 1",
            "recipe.ema_decay: a setting of dacs, daformer, hrda, mic, omuda, mfm_da, cotta, gold, plugin;",
        ),
        ("recipe", "name: dasc", "recipe.name: no recipe 'dasc'; did you mean 'dacs'?"),
        (
            "recipe",
            "name: mic, advanced: {clasmix: 1}",
            "recipe.advanced.clasmix: unknown key; did you mean 'classmix'?",
        ),
        ("recipe", "detail_loss_weight: 0.1", "recipe.detail_loss_weight: removed: always 0.1"),
        ("hosts", "name: dacs", "hosts: unknown key; known: admission, buffer, canary, classes,"),
        ("serving", "max_pixels: 9", "serving.max_pixels: removed: watch.max_pixels holds"),
        ("network", "hf_config: {}", "network.hf_config: removed: `mfmd import` records it"),
    ],
)
def test_a_key_that_is_gone_or_misplaced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, says: str
) -> None:
    path = _write(tmp_path, f"{MINIMAL}{section}: {{{key}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("round: {seed: 1}", "round: {advanced: {seed: 1}}", "round.seed is now round.advanced.seed"),
        ("mfm: {dim: 32}", "mfm: {ablation: {dim: 32}}", "mfm.dim is now mfm.ablation.dim"),
        (
            "round: {optim: {power: 1, advanced: {}}}",
            "round: {optim: {advanced: {power: 1}}}",
            "round.optim.power is now round.optim.advanced.power",
        ),
        (
            "recipe: {name: mic, classmix: false}",
            "recipe: {name: mic, advanced: {classmix: false}}",
            "recipe.classmix is now recipe.advanced.classmix",
        ),
        ("host: {name: tent}", "recipe: {name: tent}", "host is now recipe"),
        (
            "serving: {port: 1, follow_seconds: 3}",
            "serving: {port: 1, advanced: {follow_seconds: 3}}",
            "serving.follow_",
        ),
    ],
    ids=lambda text: text.split(":")[0],
)
def test_a_key_that_moved_is_read_and_told_where_it_belongs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str, says: str
) -> None:
    path = _write(tmp_path, f"{MINIMAL}{new}\n")
    wanted = load_settings(path)
    assert not caplog.records
    path = _write(tmp_path, f"{MINIMAL}{old}\n")
    assert load_settings(path) == wanted
    assert caplog.messages[0].startswith(f"{path}: {says}")


@pytest.mark.parametrize("both", ["round: {seed: 1, advanced: {seed: 2}}", "host: {name: mic}\nrecipe: {name: dacs}"])
def test_a_key_in_its_old_and_its_new_place_is_refused(tmp_path: Path, both: str) -> None:
    with pytest.raises(ConfigError, match="and both are set; delete"):
        load_settings(_write(tmp_path, f"{MINIMAL}{both}\n"))


def test_an_old_section_in_the_environment_is_told_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD_HOST__NAME", "mic")
    with pytest.raises(ConfigError, match="environment: MFMD_HOST__NAME: renamed: this section is now `recipe`"):
        load_settings(_write(tmp_path, MINIMAL))


def test_the_environment_sets_what_only_some_recipes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD_RECIPE__NAME", "mic")
    monkeypatch.setenv("MFMD_RECIPE__MASKED_IMAGE_WEIGHT", "0.5")
    monkeypatch.setenv("MFMD_RECIPE__ADVANCED__MASKED_IMAGE_RATIO", "0.6")
    monkeypatch.setenv("MFMD_RECIPE__THING_CLASSES", '["car"]')
    recipe = load_settings(_write(tmp_path, MINIMAL)).recipe
    assert isinstance(recipe, MicSettings)
    assert (recipe.masked_image_weight, recipe.advanced.masked_image_ratio, recipe.ema_decay) == (0.5, 0.6, 0.999)
    assert recipe.thing_classes == ("car",)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (MINIMAL, "state"),
        ("state: here\nwatch: {folder: drop, rescan: 3}", "here"),
        ("watch: [\nstate: here  # a comment\n", "here"),
        ("watch: {folder: 'drop}\n", "state"),
        ('state: "a: b"\n:', "a: b"),
    ],
)
def test_the_state_directory_is_found_in_a_broken_file(tmp_path: Path, text: str, state: str) -> None:
    assert state_directory(_write(tmp_path, text)) == tmp_path / state


def test_a_state_directory_that_is_not_named_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        state_directory(tmp_path / "mfmd.yaml")
    for text in ("state: [a]\n", "state: 'a\nwatch: [\n"):
        with pytest.raises(ConfigError, match="state: "):
            state_directory(_write(tmp_path, text))
    monkeypatch.setenv("MFMD_STATE", "/there")
    assert state_directory(tmp_path / "none.yaml") == Path("/there")


def test_json_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"classes": "demo", "watch": {"folder": "drop", "stability_seconds": 1e-05}}')
    assert load_settings(path).watch.stability_seconds == 1e-05
    path.write_text('{"classes": "demo",}')
    with pytest.raises(ConfigError, match="line 1, column 20"):
        load_settings(path)


def test_a_child_gets_no_variable_that_sets_a_setting() -> None:
    given = {"PATH": "/bin", "MFMD_CONTROL__TOKEN": "x", "mfmd_state": "y", "MFMD_CONFIG": "y", "MFMD_FAILPOINT": "z"}
    assert without_settings(given) == {"PATH": "/bin", "MFMD_FAILPOINT": "z"}


@pytest.mark.parametrize(
    ("ports", "meets"),
    [
        ("serving: {port: 8008}", True),
        ("control: {port: 8009}", True),
        ("control: {port: 9000, host: 0.0.0.0}\nserving: {port: 9000}", True),
        ("control: {port: 9000, host: localhost}\nserving: {port: 9000}", True),
        ("control: {port: 9000, host: 127.0.0.2}\nserving: {port: 9000}", False),
        ("control: {port: 0}\nserving: {port: 0}", False),
        ("serving: {port: 8008, enabled: false}", False),
    ],
)
def test_both_planes_on_one_port_are_refused(tmp_path: Path, ports: str, meets: bool) -> None:
    path = _write(tmp_path, f"{MINIMAL}{ports}\n")
    if not meets:
        load_settings(path)
        return
    with pytest.raises(ConfigError, match=r"control\.port and serving\.port are both"):
        load_settings(path)


def test_a_folder_that_no_child_or_database_can_name_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    with pytest.raises(ConfigError, match=r"(state|watch\.folder): '.*caf\\udce9/\w+': .*rename the folder in UTF-8"):
        load_settings(_write(odd, MINIMAL))
    deep = "x" * 200 + "/" + "y" * 200 + "/"
    load_settings(_write(tmp_path, f"{MINIMAL}state: /{deep}short\n"))
    with pytest.raises(ConfigError, match=r"state: .*a path of 4\d\d bytes, where databases may have 470"):
        load_settings(_write(tmp_path, f"{MINIMAL}state: /{deep}{'z' * 90}\n"))
