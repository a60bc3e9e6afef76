"""A folder to the hub: one commit, private unless it is said to be public."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from prefiere.models.source import ModelError


def push(folder: Path, name: str, *, public: bool = False, message: str = "") -> str:
    """Upload a folder as the model ``ORG/NAME``, which is made where it does not exist; returns its address.

    public: whether a repository that is made can be read by everybody. Raises ModelError in one line.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message or "Upload with prefiere")
    except HFValidationError as e:
        raise ModelError(f"--push {name}: {str(e).splitlines()[0]} Write it as ORG/NAME.") from e
    except HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else None
        if status in (401, 403):
            raise ModelError(
                f"--push {name}: the hub does not let you write there. Log in with a token that may (hf auth login), "
                "or name another ORG."
            ) from e
        raise ModelError(f"--push {name}: {str(e).splitlines()[0]}") from e
    except OSError as e:
        raise ModelError(
            f"--push {name}: the hub cannot be reached ({str(e).splitlines()[0]}). {folder} is whole."
        ) from e
    return str(done.commit_url).split("/commit/")[0]
