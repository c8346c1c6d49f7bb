"""State entries that cannot be read, as those of another version or encryption key."""

from __future__ import annotations

import httpx

from perdure.engine.admin import AdminClient, sql_text


async def corrupt(admin_url: str, service: str, key: str, name_contains: str) -> dict[str, bytes]:
    """Replace the values of the state entries of an object whose names contain a text; return its state before."""
    where = f"service_name = {sql_text(service)} and service_key = {sql_text(key)}"
    async with AdminClient(admin_url) as admin:
        rows = await admin.query(f"select key, encode(value, 'hex') as value from state where {where}")
    before = {row["key"]: bytes.fromhex(row["value"]) for row in rows}
    assert any(name_contains in name for name in before)
    after = {name: b"sealed elsewhere" if name_contains in name else value for name, value in before.items()}
    await set_state(admin_url, service, key, after)
    return before


async def set_state(admin_url: str, service: str, key: str, state: dict[str, bytes]) -> None:
    """Replace the whole state of an object."""
    request = {"object_key": key, "new_state": {name: list(value) for name, value in state.items()}}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{admin_url}/services/{service}/state", json=request)
    assert answer.is_success, answer.text
