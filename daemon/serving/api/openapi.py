"""The OpenAPI page, `/openapi.json`, made true where FastAPI cannot know. No HTML page: it would need a CDN."""

from functools import cache, partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from daemon.net.json_body import json_schemas
from daemon.serving.middleware import HASH_HEADER, VERSION_HEADER
from daemon.serving.oip.messages import READ_MESSAGES

SUMMARY = "Segments images; every answer names the version of the model that gave it."
NEVER_ANSWERED = ("HTTPValidationError", "ValidationError")
"""Statuses that FastAPI describes for every route with parameters; mfmd checks its own itself."""
HEADERS = {
    VERSION_HEADER: {"description": "Version that answered.", "schema": {"type": "integer"}},
    HASH_HEADER: {"description": "First 12 hex digits of the SHA-256 of its weights.", "schema": {"type": "string"}},
}


def describe_routes(app: FastAPI) -> None:
    """Make `app` describe its real routes; built once, at the first request for the page."""
    app.openapi = cache(partial(_page, app))  # type: ignore[method-assign]


def _page(app: FastAPI) -> dict[str, Any]:
    page = get_openapi(title=app.title, version=app.version, description=SUMMARY, routes=app.routes)
    for methods in page["paths"].values():
        for operation in methods.values():
            _correct(operation["responses"])
    components = page["components"]["schemas"]
    components |= json_schemas(*READ_MESSAGES)
    for name in NEVER_ANSWERED:
        components.pop(name, None)
    return page


def _correct(responses: dict[str, Any]) -> None:
    """Remove what is never answered; every answer names its version once there is one."""
    if any(name in str(responses.get("422", "")) for name in NEVER_ANSWERED):
        del responses["422"]
    for response in responses.values():
        response["headers"] = response.get("headers", {}) | HEADERS
