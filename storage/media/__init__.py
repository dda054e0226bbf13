"""Image and video files: formats, decoding, perceptual hashes. What needs no decoder is here."""

from importlib import util

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
"""Suffixes of the videos that are read, in lower case."""
MADE_OF_VIDEOS = "video-????????????????-*.png"
"""Names (fnmatch) of the image files made from videos; patterns of `watch` never leave these out."""


def can_read_videos() -> bool:
    """Return whether the extra `video` is installed."""
    return util.find_spec("av") is not None
