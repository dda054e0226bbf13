"""Mirrors for other servers: a reader finds one whole version at every moment, whatever was killed when."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file

from storage import durable, failpoints
from storage.durable.digest import digest_of
from storage.errors import StorageError
from storage.registry.bases import KEY
from storage.registry.manifest import Manifest
from storage.registry.mirrors import HuggingFaceMirror, Mirror, TritonMirror
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import WEIGHTS
from tests.storage.registry.mirrored import export, weights_of, what_a_reader_finds


class Died(BaseException):
    """The process ends here."""


@pytest.fixture(params=["triton", "huggingface"])
def make(request: pytest.FixtureRequest) -> Callable[[Path], Mirror]:
    if request.param == "triton":
        return lambda folder: TritonMirror(folder, max_batch=4)
    return HuggingFaceMirror


@pytest.fixture
def mirror(make: Callable[[Path], Mirror], tmp_path: Path) -> Iterator[Mirror]:
    yield make(tmp_path / "mirror")
    failpoints.watch(None)


def publish(mirror: Mirror, version: int) -> None:
    """What the daemon does for a version that serves."""
    if not mirror.holds(version, weights_of(version)):
        export(mirror, version)
    mirror.point(version)
    mirror.prune({version, version - 1})


def test_versions_follow_each_other_and_old_ones_go(mirror: Mirror):
    mirror.prune(())
    assert mirror.current() is None
    for version in (1, 2, 3):
        publish(mirror, version)
        assert what_a_reader_finds(mirror) == version and mirror.leads_to(version)
    assert not mirror.place(1).exists() and mirror.place(2).is_dir()
    mirror.point(2)
    assert what_a_reader_finds(mirror) == 2, "a rollback to a copy that is there"
    mirror.prune(())
    assert what_a_reader_finds(mirror) == 2 and not mirror.place(3).exists()


def test_a_reader_finds_a_whole_version_at_every_step_of_the_writer(mirror: Mirror):
    found: set[int | None] = set()
    failpoints.watch(lambda _: found.add(what_a_reader_finds(mirror)))
    for version in (1, 2, 3, 2):
        publish(mirror, version)
    assert found == {None, 1, 2, 3}


def test_killed_at_any_step_it_holds_a_whole_version_and_goes_on(make: Callable[[Path], Mirror], tmp_path: Path):
    publish(make(tmp_path / "before"), 1)
    for step in range(1, 200):
        shutil.copytree(tmp_path / "before", tmp_path / str(step), symlinks=True)
        mirror = make(tmp_path / str(step))
        if not dies(mirror, step):
            break
        assert what_a_reader_finds(mirror) in (1, 2)
        publish(mirror, 2)
        assert what_a_reader_finds(mirror) == 2
        assert not list(mirror.folder.glob("*.partial"))
    assert step > 10


def dies(mirror: Mirror, step: int) -> bool:
    """Whether version 2 comes and version 1 goes until the writer dies at its `step`-th step; false if it has fewer."""
    left = step

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Died

    failpoints.watch(count)
    try:
        publish(mirror, 2)
        mirror.prune(())
    except Died:
        return True
    finally:
        failpoints.watch(None)
    return False


def test_a_copy_of_other_weights_is_made_again_unless_it_is_in_use(mirror: Mirror):
    export(mirror, 1, weights=weights_of(99))
    assert not mirror.holds(1, weights_of(1))
    publish(mirror, 1)
    assert what_a_reader_finds(mirror) == 1
    with pytest.raises(StorageError, match="made from other weights than this registry's version 1"):
        mirror.prepare(1)
    assert what_a_reader_finds(mirror) == 1


def test_a_copy_over_another_base_is_no_copy_of_this_version(
    mirror: Mirror, tmp_path: Path, manifest: Callable[..., Manifest]
):
    """What trains is equal in both registries, what is frozen is not."""
    digests = list[str]()
    for value in (1.0, 2.0):
        base, weights = tmp_path / "base", tmp_path / "weights"
        save_file({"vit": np.full(4, value, np.float32)}, base)
        save_file({"token": np.ones(4, np.float32)}, weights, metadata={KEY: digest_of(base)})
        registry = CheckpointRegistry(tmp_path / f"{value}")
        digests.append(registry.add(weights, manifest(), by="import", base=base).files[WEIGHTS].sha256)
    export(mirror, 1, weights=digests[0])
    assert [mirror.holds(1, digest) for digest in digests] == [True, False]


def test_what_is_not_ours_is_left_alone(mirror: Mirror):
    publish(mirror, 1)
    for name in ("7", "notes"):
        (mirror.folder / name).mkdir()
        (mirror.folder / name / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="not made by mfmd"):
        mirror.prepare(7)
    publish(mirror, 2)
    publish(mirror, 3)
    assert (mirror.folder / "7" / "mine.txt").read_text() == (mirror.folder / "notes" / "mine.txt").read_text()


def test_what_a_killed_writer_left_is_removed(mirror: Mirror):
    publish(mirror, 1)
    for name in (".2.abcd.partial", ".3.abcd.partial"):
        (mirror.folder / name).mkdir()
        (mirror.folder / name / "model.onnx").write_text("half")
    (mirror.folder / f".current.abcd{durable.PARTIAL}").symlink_to("1")
    (mirror.folder / "mine.partial").write_text("mine")
    publish(mirror, 2)
    assert [path.name for path in mirror.folder.glob("*.partial")] == ["mine.partial"], "of others nothing goes"
    assert what_a_reader_finds(mirror) == 2


def test_pointing_at_nothing_is_refused(mirror: Mirror):
    with pytest.raises(StorageError, match="no copy of version 5"):
        mirror.point(5)
    mirror.prune(())
    assert mirror.current() is None


def test_the_triton_configuration_names_one_version_and_its_shapes(tmp_path: Path):
    mirror = TritonMirror(tmp_path, max_batch=4)
    export(mirror, 1)
    mirror.point(1)
    text = (tmp_path / "mfmd" / "config.pbtxt").read_text()
    assert "versions: [ 1 ]" in text and "max_batch_size: 4" in text
    assert (
        "dims: [ 3, -1, -1 ]" in text and 'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3, -1, -1 ]' in text
    )
    export(mirror, 2)
    mirror.point(2)
    assert "dims: [ 3, 64, 96 ]" in (tmp_path / "mfmd" / "config.pbtxt").read_text(), "free in the batch only"
    again = TritonMirror(tmp_path, max_batch=8)
    assert again.current() == 2 and not again.leads_to(2), "a setting changed: it is written again"


def triton_schema() -> ModuleType | None:
    """Triton's own description of its configuration, from its client; imported alone, for the rest needs grpc."""
    found = importlib.util.find_spec("tritonclient")
    places = (
        [Path(place) / "grpc" / "model_config_pb2.py" for place in found.submodule_search_locations or []]
        if found
        else []
    )
    path = next((place for place in places if place.is_file()), None)
    spec = importlib.util.spec_from_file_location("model_config_pb2", path) if path else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(triton_schema() is None, reason="needs tritonclient")
def test_triton_itself_reads_the_configuration(tmp_path: Path):
    from google.protobuf import text_format

    mirror, schema = TritonMirror(tmp_path, max_batch=4), triton_schema()
    assert schema is not None
    export(mirror, 1)
    mirror.point(1)
    config = text_format.Parse((tmp_path / "mfmd" / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("mfmd", "onnxruntime", 4)
    assert list(config.version_policy.specific.versions) == [1]
    assert (config.input[0].name, list(config.input[0].dims)) == ("images", [3, -1, -1])
    assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [3, -1, -1])
    assert config.HasField("dynamic_batching") and config.parameters["mfmd_version"].string_value == "1"


def test_a_configuration_that_is_no_text_leads_nowhere_and_stays(tmp_path: Path):
    mirror = TritonMirror(tmp_path / "triton", max_batch=4)
    publish(mirror, 1)
    (mirror.folder / "config.pbtxt").write_bytes(b"\xff\xfe versions: [ 1 ]")
    assert not mirror.leads_to(1)
    with pytest.raises(StorageError, match=r"config\.pbtxt: not made by mfmd"):
        publish(mirror, 1)
