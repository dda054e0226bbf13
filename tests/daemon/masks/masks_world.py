"""A drop folder, a folder of masks, a real plane, and a writer that asks it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from adapters.inference.segment import segment_image
from configs.settings import Settings
from daemon.masks.mask_file import mask_path, read_note
from daemon.masks.plane_client import PlaneClient
from daemon.masks.report import MaskReport
from daemon.masks.writer import MaskWriter
from daemon.serving.plane import InferencePlane
from storage.errors import DurabilityLost
from storage.registry.registry import CheckpointRegistry
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    picture,
    running,
    settings_for,
    wait_until,
)


class Folders:
    """A drop folder, a folder for masks, and the settings that join them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.drop, self.masks = world.root / "drop", world.root / "masks"
        self.drop.mkdir()

    def settings(self, *, stability: float = 0.0, **masks: object) -> Settings:
        watch = {"folder": self.drop, "stability_seconds": stability, "advanced": {"rescan_seconds": 0.05}}
        return settings_for(self.world.layout.root, watch=watch, masks={"folder": self.masks, **masks})

    def put(self, name: str, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
        """An image under `name`, renamed into place."""
        path = self.drop / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(image_bytes(height, width, seed))
        hidden.rename(path)

    def mask(self, name: str) -> Path:
        return mask_path(self.masks, name)

    def wait_for(self, name: str, version: int | None = None) -> np.ndarray:
        """The mask of an image, once it is there (and made by `version`)."""

        def there() -> bool:
            note = read_note(self.mask(name))
            return note is not None and version in (None, note.version)

        wait_until(there, f"the mask of {name} is written")
        with Image.open(self.mask(name)) as image:
            return np.asarray(image)

    def expected(self, version: int, seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
        return segment_image(self.world.networks[version], picture(height, width, seed), (HEIGHT, WIDTH))


class Masked:
    """A plane that serves, and a writer of masks that asks it over HTTP."""

    def __init__(self, served: Served, writer: MaskWriter, stop: threading.Event) -> None:
        self.served, self._writer, self._stop = served, writer, stop

    @property
    def report(self) -> MaskReport:
        return self._writer.report

    def stop(self) -> None:
        """Let the writer end; the plane serves on."""
        self._stop.set()


@contextmanager
def writing(settings: Settings, served: Served) -> Iterator[Masked]:
    """A writer in a thread beside a plane that runs; an fsync error ends it."""
    serving = settings.serving.model_copy(update={"port": served.client.base_url.port})
    stop = threading.Event()
    with closing(PlaneClient(settings.model_copy(update={"serving": serving}))) as client:
        writer = MaskWriter(settings, client, stop)

        def run() -> None:
            with suppress(DurabilityLost):
                writer.run()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Masked(served, writer, stop)
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def masked(settings: Settings, prepare: Callable[[InferencePlane], None] = lambda plane: None) -> Iterator[Masked]:
    """A plane and a writer, which begins once the plane serves if there is a version: refused, it would wait."""
    with running(settings, prepare) as served:
        serving = CheckpointRegistry(served.plane.layout.checkpoints).serving()
        if serving is not None:
            served.wait_for(serving.version)
        with writing(settings, served) as both:
            yield both
