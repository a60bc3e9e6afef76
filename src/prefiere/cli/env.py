"""``prefiere --version`` and ``prefiere env``: what is installed here, to paste into a report of a bug."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from prefiere.console import Json, command, say

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub")
EXTRAS = {
    "bitsandbytes": "4 and 8 bits: quantize=nf4, int8",
    "gptqmodel": "GPTQ and AWQ bases without prefiere",
    "psycopg": "a store of votes in PostgreSQL",
    "gguf": "export --gguf",
    "tensorboard": "report_to=tensorboard",
    "wandb": "report_to=wandb",
    "trackio": "report_to=trackio",
    "mlflow": "report_to=mlflow",
    "ipywidgets": "progress bars of libraries in notebooks",
}
"""What may be there besides, and what for."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE")
_SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefiere {_version('prefiere')}")
        raise typer.Exit


def version_option(
    shown: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Align language models with human preferences, and see whether it worked."""


@command
def env(json: Json = False) -> dict[str, Any]:
    """Say what is installed here, to paste into a report of a bug. No password is shown, nothing is loaded."""
    found = describe()
    for title, rows in found.items():
        say(title)
        for name, value in rows.items():
            say(f"  {name}: {value}")
    return found


def describe() -> dict[str, dict[str, str]]:
    """Versions, extras, machine, settings of the environment, and caches: names and texts, by group."""
    return {
        "versions": {
            "prefiere": _version("prefiere"),
            "python": sys.version.split()[0],
            "platform": platform.platform(),
        }
        | {name: _version(name) for name in PACKAGES},
        "extras": {name: f"{_version(name)} ({use})" for name, use in EXTRAS.items()},
        "machine": _machine(),
        "environment": {name: os.environ[name] for name in _THREADS if name in os.environ}
        | {name: "set" for name in _SECRET if os.environ.get(name)},
        "caches": _caches(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    gib = 2**30
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    return {
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {cores} for this process",
        "memory": f"{psutil.virtual_memory().total / gib:.1f} GiB, {psutil.virtual_memory().available / gib:.1f} free",
        "GPUs": _gpus(),
    }


def _gpus() -> str:
    """What the driver's own tool says of GPUs: torch would take seconds to say the same."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none that nvidia-smi knows of"
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"nvidia-smi does not answer: {e}"
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return "; ".join(said.splitlines()) or "none"


def _caches() -> dict[str, str]:
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    from prefiere.cache import cache_folder

    return {
        "models and data (HF_HOME)": _folder(Path(HF_HOME)),
        "tokens and references (PREFIERE_CACHE)": _folder(cache_folder()),
        "network": "off (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "on",
    }


def _folder(path: Path) -> str:
    there = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    return f"{path}{'' if there == path else ' (not there yet)'}, {free:.0f} GiB free"
