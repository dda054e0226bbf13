"""Fetch a model by its hub id: safetensors of main, else those that the hub's own conversion offers for main.

A bot of the hub, SFconvertbot, opens a pull request that adds safetensors to a model that has a pickle alone. Models of
2022, such as most SegFormers of Cityscapes, have only that. The request is used as transformers does
(`safetensors_conversion.py`): by its author and title, while it is open, and only when its parent is the head of main.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from adapters.errors import UnsupportedModel
from adapters.networks.weight_files import INDEX, PICKLED, PICKLED_INDEX, PICKLES, WHOLE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDINGS = (".safetensors", ".onnx", *PICKLES)
_WANTED = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
"""Files to fetch: no pickles and no Python, because those run code."""
_PICKLED = [PICKLED, PICKLED_INDEX, "pytorch_model-*.bin"]
"""Files to fetch too when the caller reads pickles."""
_BOT, _TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
PATIENCE = 10.0
"""Seconds without one byte after which the hub counts as unreachable. Its library has this limit for files alone, and
waits for ever for answers about a model."""
_SHORT = 12
"""Digits of a commit in a message."""


class Located(NamedTuple):
    """A model to import, on this machine."""

    path: Path
    """Its directory or file."""
    origin: str
    """What the history calls it: the path, or hub id, commit and, if it is not of main, the pull request."""


class _Conversion(NamedTuple):
    commit: str
    """Empty: there is none to use."""
    text: str
    """The ref of the pull request; without one, why."""


def is_hub_id(source: str) -> bool:
    """Return whether `source` can be a hub id, `organisation/name`, and not a file."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(_FILE_ENDINGS)


def locate(source: str | Path, *, pickles: bool = False) -> Located:
    """Return where the model `source` lies: a directory, a file, or, when neither exists, a hub id, which is fetched.

    `pickles` also fetches a model that has only pickles. Raises UnsupportedModel when the hub does not give the model.
    """
    if Path(source).exists() or not is_hub_id(str(source)):
        return Located(Path(source), str(source))
    return fetch(str(source), pickles=pickles)


def fetch(hub_id: str, *, pickles: bool = False) -> Located:
    """Return a hub model with safetensors: of main, else of the conversion pull request on the head of main.

    `pickles` also accepts a main that has pickles alone, after both. Raises UnsupportedModel, which says why, when none
    is to be had.
    """
    with _explained(hub_id):
        main = _download(hub_id, None, _WANTED)
        names = [] if _has_safetensors(main) else _pickles_of(hub_id, main)
        if not names:
            return Located(main, f"{hub_id} at {main.name}")  # whether it holds any weights is for its reader to say
        found = _conversion_of(hub_id, main.name)
        if found.commit:
            # By commit, not by ref: what was checked above is what is read.
            folder = _download(hub_id, found.commit, _WANTED)
            if _has_safetensors(folder):
                return Located(folder, f"{hub_id} at {found.commit} ({found.text})")
            found = _Conversion("", f"the pull request {found.text} adds none")
        if pickles:
            main = _download(hub_id, main.name, [*_WANTED, *_PICKLED])
            return Located(main, f"{hub_id} at {main.name}")
    raise UnsupportedModel(
        f"{hub_id}: main ({main.name[:_SHORT]}) holds only {', '.join(names)}, which run code when read, and no "
        f"safetensors: {found.text}; ask its authors for safetensors, or, if you trust them, give --unsafe-pickle"
    )


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))


def _has_safetensors(folder: Path) -> bool:
    return (folder / WHOLE).exists() or (folder / INDEX).exists()


def _pickles_of(hub_id: str, folder: Path) -> list[str]:
    """Return the names of the pickles beside config.json, in the hub or, where it is not known, in the cache."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    names = {path.name for path in folder.iterdir()}
    with suppress(CachedRepoTreeNotFoundError):  # a cache of another program
        names |= {file.path for file in get_cached_repo_tree(hub_id, revision=folder.name)}
    return sorted(name for name in names if name.startswith("pytorch_model") and Path(name).suffix in PICKLES)


def _conversion_of(hub_id: str, head: str) -> _Conversion:
    """Return the pull request of the hub's bot whose parent is `head`, the commit at which main stands."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub, stale = HfApi(), ""
    try:
        for request in hub.get_repo_discussions(hub_id, discussion_type="pull_request", discussion_status="open"):
            ref = request.git_reference
            if ref is None or (request.author, request.title, request.status) != (_BOT, _TITLE, "open"):
                continue
            commits = [commit.commit_id for commit in hub.list_repo_commits(hub_id, revision=ref)]
            if commits[1:2] == [head]:
                return _Conversion(commits[0], ref)
            stale = f"the pull request {ref} of {_BOT} is stale, because main changed since"
    except (OfflineModeIsEnabled, HfHubHTTPError, _transport_error()) as error:
        return _Conversion("", f"the hub cannot be asked for a pull request that adds them ({type(error).__name__})")
    return _Conversion("", stale or f"no open pull request of {_BOT} adds them")


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """Raise UnsupportedModel with what to do for every error of the hub, and give up on a hub that is silent."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    session = get_session()
    if _limit_waits not in session.event_hooks["request"]:
        session.event_hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limit_waits]}
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub cannot be reached to look for a model of that name; "
            "give a local directory, or connect (HF_HUB_OFFLINE must not be set) and try again"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnsupportedModel(
            f"{hub_id}: no such directory here, and the hub gives no model of that name ({type(error).__name__}); "
            "check the id, sign in with `hf auth login` if the model is gated, or give a local directory"
        ) from error
    except (HfHubHTTPError, _transport_error(), OSError) as error:
        raise UnsupportedModel(
            f"{hub_id}: the download failed ({type(error).__name__}: {_line(error)}); run the command again, which "
            "fetches only what is missing, or give a local directory"
        ) from error


def _transport_error() -> type[Exception]:
    """Return the base of the errors of the HTTP client that the hub's library uses, whichever that is."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported for this, but not to type checkers

    error: type[Exception] = httpx.HTTPError
    return error


def _limit_waits(request: Any) -> None:
    """Give each wait of a request that has no limit the limit `PATIENCE`."""
    limits = request.extensions.get("timeout") or {}
    waits = {kind: PATIENCE if limits.get(kind) is None else limits[kind] for kind in ("connect", "read", "write")}
    request.extensions = {**request.extensions, "timeout": {**limits, **waits}}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
