"""``python -m remotegpu_hub.pages``, started by the hub with its variables; see `configuration`."""

from __future__ import annotations

import asyncio
import os

from remotegpu_hub.pages.app import serve

if __name__ == "__main__":
    asyncio.run(serve(os.environ))
