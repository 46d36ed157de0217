"""Uploading an export to the Hugging Face hub. Never needed; nothing else here goes online.

Needs the extra `hub`, and a token of the user's own: ``hf auth login``, or HF_TOKEN.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from jepa.errors import ConfigError
from jepa.export.extras import need

_NEEDS = ("--push", "hub", "huggingface_hub")


def check(repository: str) -> None:
    """Refuse what cannot be uploaded before anything is made.

    Raises:
        ConfigError: no such name, or huggingface_hub is not installed.
    """
    if not repository:
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"--push {repository!r}: give the repository as USER/NAME")
    need(*_NEEDS)


def upload(folder: Path, repository: str) -> None:
    """Make the repository where it is not there, and upload the folder.

    Raises:
        ConfigError: no token, no permission, or no connection. The folder stays.
    """
    api = need(*_NEEDS).HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by jepa")
    except Exception as error:  # of the hub, of HTTP, of the network: they have no common base
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{folder} is written, but uploading it to {repository} failed: {type(error).__name__}: {text}. Log in "
            f"with `hf auth login` (or set HF_TOKEN), then `hf upload {repository} {folder}`"
        ) from None


__all__ = ["check", "upload"]
