"""Where the checkpoints of known models are: shipped with the package, in a folder, or on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.json_files import find_file
from prunevid.files import reading
from prunevid.models import KnownModel

_MODELS = Path(__file__).parent / "models"
# What an export reads of a checkpoint; a hub repository may hold much else.
_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]


def shipped_config(model: KnownModel) -> dict[str, Any]:
    """The model's `config.json`, which ships with the package."""
    path = checkpoint_of_demo() / "config.json" if model.hub_id is None else _MODELS / f"{model.name}.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def checkpoint_of_demo() -> Path:
    """Folder of the demo checkpoint within the package."""
    return _MODELS / "demo"


def find_checkpoint(model: KnownModel, given: str | None) -> Path:
    """Folder of the checkpoint to export: the one given (a folder or a hub repository), or the model's own.

    Raises PruneVidError where it is missing or the hub cannot be reached.
    """
    if given is None and model.hub_id is None:
        return checkpoint_of_demo()
    if given is None:
        return _download(str(model.hub_id))
    if not given.strip():
        raise PruneVidError("the name of the checkpoint is empty: give a folder or a hub repository")
    try:
        if Path(given).exists() or given.startswith((".", "/", "~")):
            return _local(Path(os.path.expanduser(given)))
    except (OSError, ValueError) as error:  # names too long, null bytes
        raise PruneVidError(f"there is no checkpoint folder at {given!r:.200}: no folder can have that name") from error
    return _download(given)


def _local(folder: Path) -> Path:
    with reading(folder):  # a parent may not be entered
        if not folder.is_dir():
            raise PruneVidError(f"there is no checkpoint folder at {folder}")
    if not find_file(folder, "config.json"):
        raise PruneVidError(f"{folder} is not a checkpoint: it has no config.json")
    return folder


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _local(Path(snapshot_download(repository, allow_patterns=_PATTERNS)))
    except HFValidationError as error:
        raise PruneVidError(
            f"{repository!r} is neither a folder nor a hub repository of the form owner/name"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise PruneVidError(
            f"cannot download {repository} ({type(error).__name__}): check the name and the network, "
            "or give a folder with --checkpoint"
        ) from error
