"""Read weights from a local directory in Hugging Face format: safetensors only, no download, no output."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from adapters.networks.weight_files import check_types, check_values, weight_files


def load_directory(model_class: Any, config: Any, directory: Path) -> Any:
    """Load `model_class(config)` with the float32 weights in `directory`.

    Weights of modules that the model does not have (another head) are ignored, not those of its own modules. Raises
    UnsupportedModel, naming the file, when weights cannot be read, NetworkMismatch when they are not the model's or not
    finite. On the meta device everything but the values is compared, and nothing is read but the files' headers.
    """
    files, reads = weight_files(directory), torch.get_default_device().type != "meta"
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                directory,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                device_map=None if reads else "meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # whatever transformers raises: the files themselves are whole
        what = " ".join(str(error).split())
        raise UnsupportedModel(
            f"{directory}: the weights do not fit config.json, or cannot be loaded: {what}"
        ) from error
    named, state = ", ".join(path.name for path in files), model.state_dict()
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise NetworkMismatch(f"{directory}: {named}: lacks weights of the model in config.json, for example {missing}")
    if wrong := sorted(report["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise NetworkMismatch(
            f"{directory}: {named}: {name} has shape {list(found)}, config.json needs {list(expected)}; "
            "one of the two is of another model"
        )
    owners = {module for name in state for module in itertools.accumulate(_owner(name).split("."), "{}.{}".format)}
    more = [name for name in sorted(report["unexpected_keys"]) if _owner(name) in owners and not name.endswith(UNREAD)]
    if more:
        raise NetworkMismatch(
            f"{directory}: {named}: holds layers beyond those of config.json, or parts of them, for example {more[0]}; "
            "config.json is of another model"
        )
    check_types(files, {name for name, tensor in state.items() if tensor.is_floating_point()})
    if reads:
        check_values(files, state)
    return model


UNREAD = ("mask_token", "position_ids", "relative_position_index", "num_batches_tracked")
"""Ends of the names of weights that no logit depends on; older files hold them beside others that the model has."""


def _owner(name: str) -> str:
    """Return the name of the module that a weight belongs to, without its numbers."""
    return re.sub(r"\d+", "#", name.rpartition(".")[0])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and load report off stderr; relevant content becomes an error above."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def build_model(model_class: Any, config: Any, directory: Path | None, fields: Sequence[str]) -> Any:
    """Build `model_class(config)`, untrained or with the weights in `directory` (config.json + safetensors).

    `fields` are the config fields that must agree. Nothing is downloaded and no pickle is read. Raises UnsupportedModel
    when the directory cannot be read, NetworkMismatch when it holds another architecture; both begin with
    `network.pretrained: `.
    """
    if directory is None:
        return model_class(config)
    try:
        values = read_config(directory, [config.model_type], "network.encoder")
        _compare(as_config(type(config), values, directory), config, directory, fields)
        return load_directory(model_class, config, directory)
    except AdapterError as error:
        raise type(error)(f"network.pretrained: {error}") from error


def read_config(directory: Path, kinds: Sequence[str], reader: str) -> dict[str, Any]:
    """Return the values of the config.json in a Hugging Face directory whose `model_type` is one of `kinds`.

    `reader` is the setting that needs one of them. Raises UnsupportedModel when the file is none, NetworkMismatch when
    the model is of another kind.
    """
    path = directory / "config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = values["model_type"]
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror}); give a Hugging Face directory") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{path}: is no configuration of a Hugging Face model; download it again") from error
    if kind not in kinds:
        raise NetworkMismatch(
            f"{directory} holds a model of type {kind!r}, {reader} needs {' or '.join(map(repr, kinds))}; give the "
            "directory of such a model"
        )
    return values


def as_config(config_class: Any, values: dict[str, Any], directory: Path) -> Any:
    """Return transformers' config object of the config.json in `directory`.

    Raises UnsupportedModel for a field of the wrong type.
    """
    try:
        with quiet_transformers():
            return config_class.from_dict(values)
    except Exception as error:  # whatever transformers raises: a wrong type of a field is no ValueError there
        what = " ".join(str(error).split())
        raise UnsupportedModel(f"{directory / 'config.json'}: {what}; download it again") from error


def _compare(found: Any, wanted: Any, directory: Path, fields: Sequence[str]) -> None:
    for field in fields:
        ours, theirs = getattr(wanted, field), getattr(found, field, None)
        same = list(ours) == list(theirs or ()) if isinstance(ours, (list, tuple)) else ours == theirs
        if not same:
            raise NetworkMismatch(
                f"{directory} has {field} {theirs}, network.encoder needs {ours}; choose the encoder that these "
                "weights were made for"
            )
