"""Is a name that is no folder here on the hub? Asked once, without retries, before a library asks again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefiere.asked.language import in_words


def cached(name: str, file: str, revision: str | None = None) -> bool:
    """Whether a file of a model is in the hub's cache here."""
    return _in_cache(name, file, revision) is not None


def _in_cache(name: str, file: str, revision: str | None) -> str | None:
    """Where a file of a model lies in the hub's cache here; None where it does not, as of a name that the hub cannot
    have."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of a model of the hub that lies in the cache here; None for any other model."""
    if Path(name).exists() or name.count("/") > 1:
        return None
    found = _in_cache(name, "config.json", revision)
    return Path(found).parent.name if found is not None else None


def why_no_model(name: str, revision: str | None = None) -> str | None:
    """Why the hub has no model of this name to give, in one line; None where it has one, or the cache has.

    Where the hub is out of reach and the cache has it, this process goes on without a network. A model that is gated
    is there; what it takes to read it is said when it is read.
    """
    held = any(cached(name, file, revision) for file in ("config.json", "adapter_config.json"))
    absent = in_words("error.no_model_here", name=name, beside=_beside(name))
    return _why_not(name, "config.json", revision, "model", absent, held)


def why_no_data(name: str, revision: str | None = None, *, held: bool) -> str | None:
    """The same for a data set. held: its library's cache has it, at whatever revision."""
    absent = in_words("error.no_data_here", name=name, beside=_beside(name, files=True))
    return _why_not(name, "README.md", revision, "data set", absent, held)


def _why_not(
    name: str, file: str, revision: str | None, what: Literal["model", "data set"], absent: str, held: bool
) -> str | None:
    """Ask the hub once for a file that a repository may have. absent: what is said first where it has none."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kind = "data" if what == "data set" else what
    if constants.HF_HUB_OFFLINE:
        return None if held else in_words(f"error.offline_{kind}", absent=absent, name=name)
    try:
        url = hf_hub_url(name, file, revision=revision, repo_type="dataset" if what == "data set" else None)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except GatedRepoError:
        return None
    except RevisionNotFoundError:
        return in_words("error.no_revision", name=name, revision=revision)
    except (RepositoryNotFoundError, HFValidationError):
        return in_words(f"error.no_{kind}_on_hub", absent=absent)
    except HfHubHTTPError:  # there is no such file, or the hub is not well: whoever reads it says so
        return None
    except Exception as e:  # whatever the client's library raises between here and there
        if held:  # its libraries would ask five times for each file: from now on the cache is all there is
            constants.HF_HUB_OFFLINE = True
            return None
        why = str(e).strip() or type(e).__name__
        return in_words("error.hub_unreachable", absent=absent, why=why)
    return None


def _beside(name: str, *, files: bool = False) -> str:
    """What lies in the folder that a name begins with, where there is one: the name may be misspelt."""
    above = Path(name).parent
    if "/" not in name or not above.is_dir():
        return ""
    there = sorted(p.name for p in above.iterdir() if (files or p.is_dir()) and not p.name.startswith("."))
    if not there:
        return in_words("error.beside_nothing" if files else "error.beside_no_folders", folder=above)
    return in_words("error.beside", folder=above, what=", ".join(there[:5]))
