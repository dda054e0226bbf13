"""Ask the inference plane for masks over HTTP, like any client."""

import ssl

import httpx

from configs.settings import Settings
from daemon.masks.mask_file import Version
from daemon.net.token import serving_token
from daemon.runtime.run_record import base_url, current_record
from storage.errors import RefusedImage
from storage.layout import StateLayout

TIMEOUT_SECONDS = 120.0
"""Longest wait for one answer (seconds): a large image on a slow CPU under load."""
RETRY_SECONDS = 0.5
"""Pause where the plane does not say how long to wait (seconds)."""
NOT_ABOUT_THE_IMAGE = (401, 403, 408, 429)
"""Answers of 4xx that say nothing about the image."""


class PlaneUnavailable(Exception):
    """The plane returns no mask now; nothing is wrong with the image."""

    def __init__(self, reason: str, retry_seconds: float = RETRY_SECONDS, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.retry_seconds = retry_seconds
        """When to retry (seconds)."""
        self.answered = answered
        """Whether the plane answered; otherwise it does not run, or it ended over this request."""


class ImageFailed(Exception):
    """The plane failed on this image (HTTP 500); another image or another version may work."""


class PlaneClient:
    """One connection to the plane of a configuration; it is opened again when the plane restarts elsewhere."""

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet. Raises ConfigError when the token file cannot be read."""
        serving = settings.serving
        self._layout, self._serving = StateLayout(settings.state), serving
        token = serving_token(serving)
        self._http = httpx.Client(
            verify=True if serving.certificate is None else _trusting(str(serving.certificate)),
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def version(self) -> Version:
        """Return the version that answers. Raises PlaneUnavailable."""
        try:
            answer = self._ask("GET", "/v1/serving").json()
            if answer["ready"] and answer["version"] is not None:
                return Version(int(answer["version"]), str(answer["sha256"]))
        except (RefusedImage, ImageFailed, ValueError, TypeError, KeyError) as error:
            raise PlaneUnavailable(f"no inference plane answers there: {error}") from error
        raise PlaneUnavailable("no version serves yet")

    def mask(self, image: bytes, kind: str) -> tuple[bytes, Version]:
        """Return the PNG of an image file's mask and the version that made it.

        Raises RefusedImage when the plane does not take the image, ImageFailed when it failed on it, PlaneUnavailable.
        """
        largest = self._serving.advanced.max_body_bytes
        if len(image) > largest:  # the plane would close the connection while we send
            raise RefusedImage("too_many_bytes", f"{len(image)} bytes; serving.advanced.max_body_bytes is {largest}")
        answer = self._ask("POST", f"/v1/segment?format={kind}", content=image)
        number, sha256 = answer.headers["X-Checkpoint-Version"], answer.headers["X-Checkpoint-Hash"]
        return answer.content, Version(int(number), sha256)

    def _ask(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        address = current_record(self._layout, "serve") or self._serving
        url = base_url(address.host, address.port, tls=self._serving.certificate is not None) + path
        try:
            answer = self._http.request(method, url, content=content)
        except httpx.HTTPError as error:
            reason = f"the inference plane does not answer: {str(error) or type(error).__name__}"
            raise PlaneUnavailable(reason, answered=False) from error
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
            code, message = str(problem["code"]), str(problem["message"])
        except (ValueError, KeyError, TypeError):
            code, message = "unexpected_answer", f"HTTP {answer.status_code}"
        if 400 <= answer.status_code < 500 and answer.status_code not in NOT_ABOUT_THE_IMAGE:
            raise RefusedImage(code, message)
        if answer.status_code == 500:
            raise ImageFailed(message)
        raise PlaneUnavailable(message, _seconds(answer.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else RETRY_SECONDS


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trust the configured certificate itself: the names in it are for clients on other machines."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
