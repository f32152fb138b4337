"""From the name of a model to a folder on this machine: a shipped name, a folder, or an id on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rl.errors import RewindError
from rl.models.known import SHIPPED, SHIPPED_RUNS, whole_model

_HUB_ID = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
FILES = ["*.json", "*.safetensors", "*.yaml", "*vqgan.ckpt", "*.txt", "*.model", "*.tiktoken"]
"""What is fetched of a repository: weights in safetensors, configs, tokenizers, and taming's VQGAN file."""
META_FILES = ["*.pth"]
"""Meta's weights, for `scripts/convert.py` alone."""


def folder_of(name: str | Path, more: Sequence[str] = ()) -> Path:
    """The folder that a name stands for; files of a Hub id (`owner/name` or `owner/name@revision`) are fetched first.

    A folder that exists comes before a Hub id of the same spelling; of a run that trained all weights it is that of its
    model. What names nothing comes back as a path. `more` are patterns of files to fetch besides `FILES`.

    Raises:
        RewindError: a Hub id that is gated, has no such revision, or cannot be reached and is not in the cache.
    """
    text = str(name)
    shipped = SHIPPED.get(text) or SHIPPED_RUNS.get(text)
    if shipped is not None:
        return shipped
    folder = Path(name).expanduser()
    found = _HUB_ID.fullmatch(text)
    if folder.exists() or found is None:
        return whole_model(folder)
    return _fetched(found["repository"], found["revision"], [*FILES, *more])


def is_hub_id(name: str | Path) -> bool:
    """Whether a name can only mean a repository on the Hub: spelled like one, and no file or folder here."""
    text = str(name)
    here = text in SHIPPED or text in SHIPPED_RUNS or Path(name).expanduser().exists()
    return not here and _HUB_ID.fullmatch(text) is not None


def _fetched(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    called = repository if revision is None else f"{repository}@{revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except hub.GatedRepoError as error:
        raise RewindError(
            f"{called} is gated: accept its licence on its page on the Hub, then log in with `hf auth login` or set "
            "HF_TOKEN"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise RewindError(f"{repository} has no revision '{revision}': look at its branches and tags") from error
    except hub.RepositoryNotFoundError as error:
        raise RewindError(
            f"there is no folder {called} here and no repository of that name on the Hub (or it is private: set "
            "HF_TOKEN)"
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise RewindError(
            f"there is no folder {called} here and none of that name in the Hub's cache, and the Hub cannot be asked: "
            f"give a folder, or fetch it where there is a network (`hf download {repository}`) and set HF_HOME"
        ) from error
    except (hub.HfHubHTTPError, OSError) as error:
        raise RewindError(f"{called} cannot be fetched from the Hub: {_short(error)}") from error
    except hub.HFValidationError as error:
        raise RewindError(f"'{called}' is neither a folder here nor a name on the Hub: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
