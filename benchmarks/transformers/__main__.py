"""Runs ``benchmarks.transformers.run``."""

import sys

from benchmarks.transformers.run import main

sys.exit(main())
