from pathlib import Path

import numpy as np
from PIL import Image

from daemon.demo.conditions import DAY, DUSK
from daemon.demo.datasets import draw_all, jobs
from daemon.demo.scenes import draw_scene


def test_scenes_are_written_with_labels_only_where_asked(tmp_path: Path) -> None:
    work = jobs(DAY, range(2), tmp_path / "images", tmp_path / "labels") + jobs(
        DUSK, range(2), tmp_path / "camera", None
    )
    heard: list[int] = []
    paths = draw_all(work, heard.append)
    assert heard == [1, 2, 3, 4]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "images/day_00000.png",
        "images/day_00001.png",
        "camera/dusk_00000.png",
        "camera/dusk_00001.png",
    ]
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["day_00000.png", "day_00001.png"]
    scene = draw_scene(DAY, 1)
    for path, drawn in ((paths[1], scene.image), (tmp_path / "labels" / "day_00001.png", scene.label)):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), drawn)
