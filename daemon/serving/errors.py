"""Errors of the inference plane; codes are stable and documented in `docs/reference/errors.md`."""

from collections.abc import Mapping
from dataclasses import dataclass

from storage.errors import RefusedImage

REFUSED_STATUS = {
    "empty": 400,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "needs_extra": 415,
    "camera_raw": 415,
    "thumbnail_only": 415,
    "unsupported_bits": 415,
    "unsupported_colors": 415,
    "unsupported_compression": 415,
    "unsupported_layout": 415,
    "unsupported_samples": 415,
    "too_costly": 413,
    "decoder_crashed": 422,
    "truncated": 422,
    "unreadable": 422,
}
"""HTTP status for each reason of `RefusedImage`."""
CODES = (
    *REFUSED_STATUS, "batch_too_large", "body_timeout", "body_too_large", "client_disconnected", "decode_interrupted",
    "image_missing", "internal", "invalid_json", "invalid_request", "http_error", "method_not_allowed",
    "multipart_invalid", "not_found", "not_ready", "queue_full", "repository_read_only", "request_timeout",
    "shutting_down", "side_too_long", "too_many_bodies", "unauthorized", "unknown_format", "unknown_model",
    "unsupported_encoding", "unsupported_parameter", "version_not_loaded", "wrong_data", "wrong_datatype",
    "wrong_header_length", "wrong_input_name", "wrong_output_name", "wrong_shape",
)  # fmt: skip
"""Every code of an answer."""


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 2xx: HTTP `status`, a stable `code`, a sentence, perhaps `retry_after` (s) and `headers`."""

    status: int
    code: str
    message: str
    retry_after: int | None = None
    headers: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return self.message


class NotReady(ApiError):
    """No version is loaded yet."""

    def __init__(self) -> None:
        message = "no version is loaded yet; `mfmd checkpoints list` lists the versions"
        super().__init__(503, "not_ready", message, retry_after=1)


class VersionNotLoaded(ApiError):
    """A requested version is not in memory."""

    def __init__(self, version: str, resident: tuple[int, ...]) -> None:
        there = ", ".join(map(str, resident)) or "none"
        super().__init__(404, "version_not_loaded", f"version {version} is not loaded; loaded: {there}")


class QueueFull(ApiError):
    """More images wait than the queue holds."""

    def __init__(self, limit: int, retry_after: int) -> None:
        message = f"{limit} images wait already (serving.advanced.queue_images); try again in {retry_after} s"
        super().__init__(503, "queue_full", message, retry_after=retry_after)


class ShadowDiffers(Exception):
    """The masks of a candidate cannot be compared with those of the serving version."""

    code = "shadow_differs"

    def __init__(self, version: int) -> None:
        super().__init__(
            f"version {version} has other classes or another input size or fit than the version that serves, or none "
            "serves; `mfmd checkpoints show` shows both; choose another one to run in its shadow"
        )


def refused(error: RefusedImage) -> ApiError:
    """Return the answer to an unusable image; its code is the reason of refusal."""
    return ApiError(REFUSED_STATUS.get(error.reason, 422), error.reason, str(error))
