"""`python -m neural_graphs` is the command `neural-graphs`."""

from __future__ import annotations

import sys

from neural_graphs.cli import main

sys.exit(main())
