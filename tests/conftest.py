"""What every test runs under: one thread, no network, no screen. Set before anything imports torch."""

import atexit
import os
import shutil
import tempfile

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "LC_ALL": "C.UTF-8",
    "PREFIERE_CACHE": tempfile.mkdtemp(prefix="prefiere-cache-"),
}

atexit.register(shutil.rmtree, os.environ["PREFIERE_CACHE"], ignore_errors=True)

pytest_plugins = ["browser"]  # one for all, since a process has one Playwright
