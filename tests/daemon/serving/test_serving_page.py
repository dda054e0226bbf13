"""The examples of docs/reference/serving.md do what the page says, and the page names every route."""

import re
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from adapters.inference.segment import segment_image
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, World, image_bytes, picture, running

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "serving.md").read_text(encoding="utf-8")
ENVIRONMENT = {"TOKEN": "secret", "PATH": "/usr/bin:/bin"}
ADDRESS = "http://localhost:8009"


def commands() -> list[str]:
    """Each command of the page's shell examples."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in blocks for line in re.split(r"(?<!\\)\n", block.strip())]


def test_every_example_works(world: World, tmp_path: Path) -> None:
    world.add(1)
    (tmp_path / "street.png").write_bytes(image_bytes(90, 120))
    with running(world.settings()) as served:
        served.wait_for(1)
        for command in commands():
            here = command.replace(ADDRESS, str(served.client.base_url).rstrip("/"))
            done = subprocess.run(
                ["bash", "-c", here],
                cwd=tmp_path,
                env=ENVIRONMENT,
                capture_output=True,
            )
            assert done.returncode == 0, f"{here}\n{done.stdout!r}\n{done.stderr!r}"
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(mask, segment_image(world.networks[1], picture(90, 120), (HEIGHT, WIDTH)))
    assert np.asarray(Image.open(tmp_path / "overlay.png")).shape == (90, 120, 3)


def test_the_page_names_every_route(world: World) -> None:
    with running(world.settings()) as served:
        paths = served.client.get("/openapi.json").json()["paths"]
    for path in paths:
        plain = path.replace("/versions/{version}", "").replace("{model}", "segmentation")
        assert plain in PAGE, f"docs/reference/serving.md does not show {path}"
    assert "segmentation/versions/1" in PAGE


def test_every_guarantee_names_tests_that_exist() -> None:
    """And each test that is called after a guarantee is named there."""
    tests, section = Path(__file__).parents[2], PAGE.partition("## What is guaranteed")[2].partition("\n## ")[0]
    for number in range(1, 8):
        promise = section.partition(f"\n{number}. ")[2].partition(f"\n{number + 1}. ")[0]
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", promise)
        assert named, f"guarantee {number} names no test"
        for file, test in named:
            assert f"\ndef {test}(" in (tests / file).read_text(encoding="utf-8"), f"{file} has no {test}"
    guarantees = (Path(__file__).parent / "test_guarantees.py").read_text(encoding="utf-8")
    for test in re.findall(r"^def (test_\w+)", guarantees, flags=re.MULTILINE):
        assert test in section, f"docs/reference/serving.md does not name {test}"
