"""Everything that is measured, beside its peers: ``python -m benchmarks``."""

import os

# As the command sets it, before the library that reads it is loaded (see prefiere.cli.main).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
