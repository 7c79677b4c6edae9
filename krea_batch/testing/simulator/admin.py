"""Serve totals, ledger and settings to tests, and let tests change the settings while the simulator runs.

GET  /_admin/totals                     counts, cheap at any time
GET  /_admin/ledger                     the totals and every POST received
GET  /_admin/settings                   the current settings
POST /_admin/settings {"faults": {…}}   change the named settings, from now on
POST /_admin/balance  {"add": 100}      top up; or {"set": 5}, or {"set": null} for unlimited
POST /_admin/reset    {}                forget every job and count
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from krea_batch.testing.simulator.cdn import require_pillow
from krea_batch.testing.simulator.responses import bad_request, raw_json
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings
from krea_batch.testing.simulator.state import SimulatorState
from krea_batch.testing.simulator.webhooks import Webhooks

FIXED_SETTINGS = ("host", "port", "cdn_port", "state_file")  # cannot change while the simulator runs
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Balance(msgspec.Struct, forbid_unknown_fields=True):
    add: int = 0
    set: Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType | None = msgspec.UNSET


class Admin:
    """The admin endpoints. They have no password and listen only where the gateway does."""

    def __init__(self, state: SimulatorState, webhooks: Webhooks) -> None:
        self.state = state
        self.webhooks = webhooks

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/_admin/totals", self.totals),
            web.get("/_admin/ledger", self.ledger),
            web.get("/_admin/settings", self.settings),
            web.post("/_admin/settings", self.change_settings),
            web.post("/_admin/balance", self.change_balance),
            web.post("/_admin/reset", self.reset),
        ]

    async def totals(self, request: web.Request) -> web.Response:
        return _json_response(self.state.accounting.totals(self.state.now()))

    async def ledger(self, request: web.Request) -> web.Response:
        return _json_response(self.state.accounting.ledger(self.state.now()))

    async def settings(self, request: web.Request) -> web.Response:
        return _json_response(msgspec.to_builtins(self.state.settings))

    async def change_settings(self, request: web.Request) -> web.Response:
        try:
            changes = msgspec.json.decode(await request.read(), type=dict[str, Any])
            settings = _apply_changes(self.state.settings, changes)
        except (SimulatorError, *_DECODE_ERRORS) as error:
            return bad_request(str(error))
        self.state.configure(settings)
        return await self.settings(request)

    async def change_balance(self, request: web.Request) -> web.Response:
        try:
            change = msgspec.json.decode(await request.read(), type=_Balance)
        except _DECODE_ERRORS as error:
            return bad_request(f'{error}; use for example {{"add": 100}}')
        accounting = self.state.accounting
        if change.set is not msgspec.UNSET:
            accounting.balance = change.set
        if accounting.balance is not None:
            accounting.balance += change.add
        return await self.totals(request)

    async def reset(self, request: web.Request) -> web.Response:
        await self.webhooks.cancel_all()
        self.state.reset()
        return await self.totals(request)


def _apply_changes(settings: SimulatorSettings, changes: dict[str, Any]) -> SimulatorSettings:
    if fixed := [name for name in FIXED_SETTINGS if name in changes]:
        raise SimulatorError("cannot change while the simulator is running", fixed[0])
    changed = msgspec.convert(msgspec.to_builtins(settings) | changes, SimulatorSettings)
    if changed.draws_images:
        require_pillow()
    return changed


def _json_response(fields: dict[str, Any]) -> web.Response:
    return raw_json(200, msgspec.json.encode(fields))  # not orjson: a seed may have any number of digits
