"""A load says what the registry says now, not what went wrong with another version some time ago."""

from tests.daemon.serving.serving_world import Served, World, running

TOKEN = "of the repository"


def refusal(served: Served) -> str:
    answer = served.client.post("/v2/repository/models/segmentation/load")
    assert (answer.status_code, answer.json()["code"]) == (409, "load_failed")
    return str(answer.json()["message"])


def test_with_no_version_there_is_nothing_to_load(world: World) -> None:
    with running(world.settings(repository_token=TOKEN), token=TOKEN) as served:
        assert "no version was made to serve yet; `mfmd checkpoints list`" in refusal(served)


def test_a_serving_ref_that_is_gone_or_damaged_is_what_is_told(world: World) -> None:
    world.add(1)
    bad = world.add(2, promote=False)
    world.corrupt(bad)
    with running(world.settings(repository_token=TOKEN), token=TOKEN) as served:
        served.wait_for(1)
        world.point_at(bad)
        served.wait_for_failure(bad)
        assert "version 2 does not serve" in (told := refusal(served)) and "SHA-256" in told
        world.registry.ref_path("serving").unlink()
        told = refusal(served)
        assert "refs/serving: missing, though version 1 was made to serve" in told and "SHA-256" not in told
        world.registry.ref_path("serving").write_text("{")
        told = refusal(served)
        assert "refs/serving: not a ref" in told and "SHA-256" not in told
        assert served.client.get("/readyz").status_code == 200, "version 1 serves on"


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
