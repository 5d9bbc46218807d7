"""Large answers in JSON, written beside the event loop."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any


async def json_list(items: Iterable[Any]) -> str:
    """A list in JSON; item by item, so that other threads have their turn in between."""
    return await asyncio.to_thread(lambda: f"[{','.join(map(_written, items))}]")


def _written(item: Any) -> str:
    return json.dumps(item, allow_nan=False, separators=(",", ":"))
