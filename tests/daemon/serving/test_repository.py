"""The model repository of the protocol: an index of all versions, and no way to load or unload one."""

import pytest

from tests.daemon.serving.serving_world import Served, World, image_bytes, running


@pytest.mark.parametrize("change", ["load", "unload"])
@pytest.mark.parametrize("model", ["segmentation", "nobody"])
def test_load_and_unload_are_refused_and_say_what_to_do(shared: Served, change: str, model: str) -> None:
    answer = shared.client.post(f"/v2/repository/models/{model}/{change}", json={"parameters": {"config": "{}"}})
    assert (answer.status_code, answer.json()["code"]) == (403, "repository_read_only")
    assert "`mfmd promote`" in answer.json()["error"]
    assert shared.segment(image_bytes()).status_code == 200


def test_the_index_names_what_answers_though_it_was_pruned(world: World) -> None:
    first, second, third = (world.add(seed, promote=False) for seed in (1, 2, 3))
    world.registry.promote(first, by="test", reason="")
    world.registry.promote(second, by="test", reason="")
    with running(world.settings()) as served:
        served.wait_for(second)
        world.registry.promote(third, by="test", reason="")
        served.wait_for(third)
        world.registry.roll_back(to=first, by="test", reason="")
        served.wait_for(first)
        assert third in world.registry.prune(keep=0)
        index = {entry["version"]: entry["state"] for entry in served.client.post("/v2/repository/index").json()}
        resident = {str(version) for version in served.client.get("/v1/serving").json()["resident"]}
    assert str(third) in resident and {version for version, state in index.items() if state == "READY"} == resident
