"""Everything that is measured, beside its peers: ``python -m benchmarks``."""

import logging
import os

# As the command sets it, before the library that reads it is loaded (see prefiere.cli.main).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it asks for a package that nothing here needs
