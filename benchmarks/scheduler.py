"""A dask scheduler in a process of its own, which imports nothing that a scheduler doesn't need."""

import asyncio
import logging
from pathlib import Path

from distributed import Security

from kdpipe._util.silent import SilentScheduler


def schedule(file: Path, security: Security) -> None:
    """Run until the process is ended; `file` gets the address."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)

    async def run() -> None:
        scheduler = await SilentScheduler(
            scheduler_file=str(file), host="127.0.0.1", protocol="tls://", port=0, security=security
        )
        await scheduler.finished()

    asyncio.run(run())
