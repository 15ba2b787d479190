"""``python -m remotegpu``: the command line."""

from __future__ import annotations

import sys

from remotegpu.cli import main

sys.exit(main())
