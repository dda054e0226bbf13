"""The view Label: frames are suggested, corrected and sent back; what is no such archive is refused by name."""

import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from daemon.control.label_tasks import LabelTasks
from daemon.control.server import MOST_UPLOAD_BYTES
from daemon.runtime.in_force import SNAPSHOT
from storage.canary.images import files_of
from storage.canary.records import CanaryState
from tests.daemon.control.control_world import TOKEN

FORM = {"token": TOKEN, "reason": "an hour with a pen"}


@pytest.fixture
def label(page, layout) -> Iterator[SimpleNamespace]:
    """The page, with the settings that commands are started with."""
    page.context.in_force.publish(layout.run_file(SNAPSHOT))

    def send(content: bytes, **fields: str) -> httpx.Response:
        files = {"file": ("masks.zip", content, "application/zip")}
        return page.client.post("/label/upload", data=FORM | fields, files=files)

    page.upload, page.tasks = send, page.context.labels
    yield page
    page.tasks.close()


def ended(label, wait_until) -> str:
    """The view when the command has ended."""
    wait_until(lambda: label.tasks.task().state != "running", 60.0)
    return label.client.get("/label").text


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def test_from_suggestions_to_labels_that_count(label, layout, registry, drop, write_image, wait_until, tmp_path):
    add_network(registry, label.bench.settings, tmp_path)
    for number in range(4):
        write_image(drop / f"{number}.png", number)
    label.bench.until(lambda: label.bench.counts.frames == 4)
    assert "Download" not in label.client.get("/label").text
    answer = label.client.post("/suggest", data=FORM | {"count": "3", "back": "/label"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/label?done=suggest")
    assert "Frames are being chosen" in label.client.get("/label").text
    assert label.client.post("/suggest", data=FORM | {"count": "3"}).status_code == 409
    assert label.upload(b"PK").status_code == 409, "one command at a time"
    text = ended(label, wait_until)
    assert "Download the frames" in text, text
    given = zipfile.ZipFile(io.BytesIO(label.client.get("/label/suggestions.zip").content))
    assert {"cvat.zip", "label-studio.json"} < set(given.namelist()) and len(given.namelist()) >= 9

    masks = {name: corrected(given.read(name)) for name in given.namelist() if name.startswith("masks/")}
    assert label.upload(archive(**masks)).headers["Location"] == "/label?done=upload"
    text = ended(label, wait_until)
    assert "3 canary images added" in text and "3 labelled images count" in text
    listed = re.findall(r"<td>added/(frame_\d+)\.png</td><td>(\d+)x(\d+)</td>", text)
    width, height = Image.open(io.BytesIO(given.read(next(iter(masks))))).size
    assert listed == [(Path(name).stem, str(width), str(height)) for name in sorted(masks)]
    images, labels = files_of(layout)
    assert len(list(images.glob("*.png"))) == len(list(labels.glob("*.png"))) == 3
    assert label.upload(archive(**masks)).status_code == 303
    assert "3 were there already" in ended(label, wait_until)

    assert label.upload(archive(**{"masks/frame_999999.png": next(iter(masks.values()))})).status_code == 303
    text = ended(label, wait_until)
    assert "Nothing was added." in text and "no image of this name" in text


def corrected(mask: bytes) -> bytes:
    with Image.open(io.BytesIO(mask)) as image:
        drawn, palette = np.array(image), image.getpalette()
    drawn[:9] = 2
    made, out = Image.fromarray(drawn, "P"), io.BytesIO()
    made.putpalette(palette)
    made.save(out, "PNG")
    return out.getvalue()


def add_network(registry, settings, folder: Path) -> None:
    import torch

    from adapters.checkpoints.checkpoint import make_manifest, save_weights
    from adapters.networks.build import build_network

    torch.manual_seed(0)
    save_weights(build_network(settings.network.architecture(), len(settings.classes)), folder / "w.safetensors")
    version = registry.add(folder / "w.safetensors", make_manifest(settings, origin="pretrain"), by="test").version
    registry.promote(version, by="test", reason="test")


def test_what_a_command_says_when_it_fails_is_shown(label, wait_until):
    assert label.upload(b"PK no archive").status_code == 303
    text = ended(label, wait_until)
    assert "Nothing was added." in text and "no zip archive that can be read" in text


HALF = """
import sys, tempfile, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
(out / "half.png").write_bytes(b"x")
Path(tempfile.mkdtemp(), "unpacked").touch()
time.sleep(60)
"""


def test_a_command_ends_in_time_while_nobody_looks_and_leaves_nothing(label, monkeypatch, wait_until, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("daemon.control.label_tasks.TASK_SECONDS", 1.0)
    monkeypatch.setattr("daemon.control.label_tasks.PYTHON", (sys.executable, "-c", HALF))
    assert label.client.post("/suggest", data=FORM | {"count": "3"}).status_code == 303
    wait_until(lambda: list(tmp_path.glob("mfmd-label-*/work/*/unpacked")), 30.0)
    wait_until(lambda: not list(tmp_path.glob("mfmd-label-*/work")), 30.0)
    assert [path.name for path in tmp_path.glob("mfmd-label-*/*")] == ["log"]
    text = label.client.get("/label").text
    assert "Nothing was suggested." in text and "ended after 1 s" in text and "Download" not in text


def test_the_next_daemon_removes_what_a_killed_one_left(layout, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"mfmd-label-{layout.identity().replace(':', '-')}-x1" / "suggestions"
    other = tmp_path / "mfmd-label-0-1-x1"
    left.mkdir(parents=True), other.mkdir()
    LabelTasks(layout)
    assert other.exists() and not left.parent.exists()


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"token": "x"}, 401, "wrong control token"),
        ({"reason": " "}, 422, "reason is required"),
        ({str(number): "x" for number in range(20)}, 422, "not a form with a file"),
    ],
)
def test_an_upload_needs_token_and_reason(label, fields, status, words):
    answer = label.upload(b"PK", **fields)
    assert answer.status_code == status and words in answer.text and "Not uploaded" in answer.text
    assert label.tasks.task() is None


def test_an_upload_needs_a_file_of_a_bounded_size_from_this_site(label):
    client = label.client
    assert client.post("/label/upload", data=FORM).status_code == 422
    assert client.post("/label/upload", content=b"x", headers={"Content-Type": "text/plain"}).status_code in (401, 422)
    broken = {"Content-Type": "multipart/form-data"}
    assert client.post("/label/upload", content=b"x", headers=broken).status_code == 422
    form = "multipart/form-data; boundary=b"
    foreign = {"Sec-Fetch-Site": "cross-site"}
    files = {"file": ("a.zip", b"PK")}
    assert client.post("/label/upload", data=FORM, files=files, headers=foreign).status_code == 403
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    parts = iter([head, *[b"x" * 2**20] * (MOST_UPLOAD_BYTES // 2**20)])
    assert client.post("/label/upload", content=parts, headers={"Content-Type": form}).status_code == 413
    assert label.tasks.task() is None


@pytest.mark.parametrize("count", ["0", "51", "x", ""])
def test_a_number_of_frames_is_checked(label, count):
    answer = label.client.post("/suggest", data=FORM | {"count": count})
    assert answer.status_code == 422 and "Nothing is suggested" in answer.text


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "No labelled image was looked for yet"),
        (CanaryState(images=0), "No label has a say."),
        (CanaryState(images=3), "2 more decide"),
        (CanaryState(images=7), "They decide about candidates."),
        (CanaryState(problem="labels of other <b>classes"), "labels of other &lt;b&gt;classes"),
    ],
)
def test_what_the_gate_does_with_the_labels_is_said(label, layout, state, words):
    if state is not None:
        layout.canary.mkdir(exist_ok=True)
        (layout.canary / "state.json").write_text(state.model_dump_json())
    assert words in label.client.get("/label").text
    (layout.canary).mkdir(exist_ok=True)
    (layout.canary / "state.json").write_text("{")
    assert "state.json" in label.client.get("/label").text


def test_without_suggestions_there_is_no_download_and_looking_makes_no_folder(label, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    assert label.client.get("/label").status_code == 200
    assert label.client.get("/label/suggestions.zip").status_code == 404
    assert set(tmp_path.iterdir()) == before
