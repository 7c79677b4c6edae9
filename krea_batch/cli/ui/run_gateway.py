"""The gateway of an existing run, for commands that ask it about jobs that are submitted already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from krea_batch.cli.ui.embedded_simulator import start_simulator
from krea_batch.errors import RunDirError
from krea_batch.gateway.client import GatewayClient
from krea_batch.ledger import LedgerReader, read_ledger
from krea_batch.settings import ApiKey, Settings


@asynccontextmanager
async def open_run_gateway(settings: Settings, key: ApiKey, *, simulate: bool) -> AsyncIterator[GatewayClient]:
    """Open the gateway of the run in `settings.out`; with `simulate`, the simulator of the run.

    Raises RunDirError if the run used another gateway, which knows other request_ids.
    """
    async with AsyncExitStack() as stack:
        if simulate:
            url = await start_simulator(stack, settings.out)
            settings = msgspec.structs.replace(settings, gateway=url)
        with read_ledger(settings.out) as store:
            (origin,) = store.read(LedgerReader.gateway)
        if origin != settings.origin:
            problem = f"the jobs were submitted to {origin}, not to {settings.origin}"
            hint = "add --simulate" if "127.0.0.1" in str(origin) else "use the same --gateway"
            raise RunDirError(settings.out, problem, hint)
        yield await stack.enter_async_context(GatewayClient(settings, key))
