"""Hub ids over HTTP: safetensors of main, of the conversion pull request on its head, or a reason why there is none."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from adapters.checkpoints import hub as product
from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import UnsupportedModel
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.checkpoints.local_hub import Files, Hub, Repository, use_hub

NAME = "street/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with use_hub(tmp_path / "hub", monkeypatch) as served:
        yield served


@pytest.fixture
def pickled(segformer_files: dict[str, bytes]) -> Files:
    """The model as it was saved in 2022: a pickle alone."""
    content = io.BytesIO()
    torch.save(load(segformer_files["model.safetensors"]), content)
    return {"config.json": segformer_files["config.json"], "pytorch_model.bin": content.getvalue()}


@pytest.fixture
def repository(hub: Hub, pickled: Files) -> Repository:
    """A model whose main holds a pickle alone."""
    found = hub.repositories[NAME] = Repository()
    found.commit("start", {})
    found.commit("weights", pickled)
    return found


@pytest.fixture
def converted(pickled: Files, segformer_files: dict[str, bytes]) -> Files:
    return {**pickled, "model.safetensors": segformer_files["model.safetensors"]}


def reason_of(registry: CheckpointRegistry) -> str:
    return registry.history()[-1].reason


def test_safetensors_of_main_are_taken_and_no_request_is_asked_for(
    hub: Hub, repository: Repository, converted: Files, settings: Settings, registry: CheckpointRegistry
) -> None:
    repository.request(converted)
    head = repository.commit("safetensors", converted)
    import_checkpoint(NAME, settings, registry)
    assert reason_of(registry) == f"imported from {NAME} at {head}"
    assert not any("discussions" in path or path.endswith(".bin") for path in hub.asked)


def test_the_conversion_on_the_head_of_main_is_taken(
    hub: Hub, repository: Repository, converted: Files, settings: Settings, registry: CheckpointRegistry
) -> None:
    repository.request({}, title="Fix the model card")
    repository.request({}, author="somebody")
    repository.request({}, status="closed")
    head = repository.refs["main"][0]
    repository.files[head] = {**repository.files[head], "other.safetensors": b"of another program"}
    commit = repository.request(converted)
    manifest = import_checkpoint(NAME, settings, registry)
    assert manifest.network["hf_config"]["model_type"] == "segformer"
    assert reason_of(registry) == f"imported from {NAME} at {commit} (refs/pr/4)"
    assert not any(path.endswith(".bin") for path in hub.asked), "no pickle is fetched"


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "no open pull request of SFconvertbot adds them"),
        ([{"author": "somebody"}], "no open pull request of SFconvertbot adds them"),
        ([{"status": "merged"}], "no open pull request of SFconvertbot adds them"),
        ([{"title": "Adding safetensors"}], "no open pull request of SFconvertbot adds them"),
        ([{}], "the pull request refs/pr/1 adds none"),
    ],
)
def test_without_a_conversion_it_says_so_and_names_the_flag(
    hub: Hub,
    repository: Repository,
    settings: Settings,
    registry: CheckpointRegistry,
    requests: list[dict[str, str]],
    says: str,
) -> None:
    for about in requests:
        repository.request({"config.json": b"{}"}, **about)
    main = repository.refs["main"][0][:12]
    with pytest.raises(UnsupportedModel, match=rf"{NAME}: main \({main}\) holds only pytorch_model.bin") as caught:
        import_checkpoint(NAME, settings, registry)
    assert says in str(caught.value) and "--unsafe-pickle" in str(caught.value)
    assert registry.versions() == [] and not any(path.endswith(".bin") for path in hub.asked)


def test_a_conversion_of_an_older_main_is_stale(
    hub: Hub,
    repository: Repository,
    converted: Files,
    pickled: Files,
    settings: Settings,
    registry: CheckpointRegistry,
) -> None:
    repository.request(converted)
    repository.commit("other weights", pickled)
    with pytest.raises(UnsupportedModel, match=r"refs/pr/1 of SFconvertbot is stale.*--unsafe-pickle"):
        import_checkpoint(NAME, settings, registry)
    newer = repository.request(converted)
    import_checkpoint(NAME, settings, registry)
    assert reason_of(registry) == f"imported from {NAME} at {newer} (refs/pr/2)"


def test_with_the_flag_the_pickle_of_main_is_read(
    hub: Hub,
    repository: Repository,
    segformer_files: dict[str, bytes],
    settings: Settings,
    registry: CheckpointRegistry,
) -> None:
    heard: list[str] = []
    version = import_checkpoint(NAME, settings, registry, unsafe_pickle=heard.append).version
    assert any("pytorch_model.bin: a pickle" in text for text in heard)
    assert reason_of(registry) == f"imported from {NAME} at {repository.refs['main'][0]}"
    network, _ = load_version(registry, version, torch.device("cpu"))
    theirs = sorted(load(segformer_files["model.safetensors"]).values(), key=lambda value: value.sum().item())
    ours = sorted(network.state_dict().values(), key=lambda value: value.sum().item())
    assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_with_the_flag_a_conversion_is_still_preferred(
    hub: Hub, repository: Repository, converted: Files, settings: Settings, registry: CheckpointRegistry
) -> None:
    repository.request(converted)
    heard: list[str] = []
    import_checkpoint(NAME, settings, registry, unsafe_pickle=heard.append)
    assert reason_of(registry).endswith("(refs/pr/1)") and not any("a pickle" in text for text in heard)


def test_a_model_that_is_gone_is_named(hub: Hub, settings: Settings, registry: CheckpointRegistry) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{NAME}: .*no model of that name \(RepositoryNotFoundError\); check"):
        import_checkpoint(NAME, settings, registry)


def test_a_hub_that_will_not_list_requests_is_named(
    hub: Hub, repository: Repository, settings: Settings, registry: CheckpointRegistry
) -> None:
    hub.broken = "discussions"
    with pytest.raises(UnsupportedModel, match=r"cannot be asked for a pull request.*HfHubHTTPError.*--unsafe-pickle"):
        import_checkpoint(NAME, settings, registry)
    import_checkpoint(NAME, settings, registry, unsafe_pickle=lambda text: None)


def test_a_slow_hub_is_waited_for_and_a_silent_one_is_not(
    hub: Hub,
    repository: Repository,
    converted: Files,
    settings: Settings,
    registry: CheckpointRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(product, "PATIENCE", 0.3)
    hub.silent = f"/api/models/{NAME}"
    with pytest.raises(UnsupportedModel, match=r"the hub cannot be reached"):
        import_checkpoint(NAME, settings, registry)
    repository.request(converted)
    hub.silent = "discussions"
    with pytest.raises(UnsupportedModel, match=r"cannot be asked for a pull request.*ReadTimeout"):
        import_checkpoint(NAME, settings, registry)
    hub.silent, hub.steps = "", 8
    assert import_checkpoint(NAME, settings, registry).version == 1


def test_a_file_that_is_cut_off_is_never_taken_and_the_next_call_goes_on(
    hub: Hub, repository: Repository, converted: Files, settings: Settings, registry: CheckpointRegistry
) -> None:
    repository.request(converted)
    hub.cut = {"model.safetensors": 1000}
    with pytest.raises(UnsupportedModel, match=rf"{NAME}: the download failed .*of size .*run the command again"):
        import_checkpoint(NAME, settings, registry)
    assert registry.versions() == []
    hub.cut = {}
    assert import_checkpoint(NAME, settings, registry).version == 1


@pytest.mark.nightly  # the hub's library waits a second
def test_a_transfer_that_breaks_off_is_taken_up_again(
    hub: Hub,
    repository: Repository,
    converted: Files,
    segformer_files: dict[str, bytes],
    settings: Settings,
    registry: CheckpointRegistry,
) -> None:
    repository.request(converted)
    hub.torn = {"model.safetensors"}
    assert import_checkpoint(NAME, settings, registry).version == 1
    assert hub.torn == set()
    cached = next((settings.state.parent / "hub").glob("*/snapshots/*/model.safetensors"))
    assert cached.read_bytes() == segformer_files["model.safetensors"]


def test_offline_after_that_the_cache_is_enough_for_main_only(
    hub: Hub,
    repository: Repository,
    converted: Files,
    settings: Settings,
    registry: CheckpointRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    repository.commit("safetensors", converted)
    import_checkpoint(NAME, settings, registry)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert import_checkpoint(NAME, settings, registry).version == 2
