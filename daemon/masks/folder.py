"""Where masks may be written: not among the images that are looked at, and not among what mfmd keeps."""

from configs.errors import ConfigError
from configs.settings import Settings


def check_masks(settings: Settings) -> None:
    """Raises ConfigError when `masks.folder` would feed on itself, or images leave before they can get a mask."""
    if settings.masks.folder is None:
        return
    if settings.watch.after_commit != "keep":
        raise ConfigError(
            f"masks.folder: watch.after_commit is {settings.watch.after_commit}, so images may be gone before their "
            "mask is made; set it to keep, or ask the inference plane for masks"
        )
    folder = settings.masks.folder.resolve()
    for name, other in (("watch.folder", settings.watch.folder), ("state", settings.state)):
        place = other.resolve()
        if folder.is_relative_to(place) or place.is_relative_to(folder):
            raise ConfigError(f"masks.folder: {folder} and {name} {place} lie in each other; put them side by side")
