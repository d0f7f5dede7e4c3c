"""The operator of a host under test: the admin password over HTTP, and orders by name."""

import base64
import json
from typing import Any

import pytest

from tests.support_client import Client, XrpcError

ADMIN = "com.atproto.admin."
REPO = "com.atproto.admin.defs#repoRef"


class Operator:
    """Calls methods with the admin password."""

    def __init__(self, host: Any) -> None:
        token = base64.b64encode(f"admin:{host.admin_password}".encode()).decode()
        self.headers = {"Authorization": f"Basic {token}"}
        self.client = Client(host.client.http, host.client.url)

    async def get(self, method: str, **params: Any) -> Any:
        name = method if "." in method else ADMIN + method
        return await self.client.call("GET", name, params=params, headers=self.headers)

    async def post(self, method: str, **fields: Any) -> Any:
        headers = {**self.headers, "Content-Type": "application/json"}
        name = method if "." in method else ADMIN + method
        return await self.client.call(
            "POST", name, data=json.dumps(fields).encode(), headers=headers
        )

    async def take_down(self, kind: str, *, applied: bool = True, **subject: Any) -> Any:
        return await self.post(
            "updateSubjectStatus",
            subject={"$type": kind, **subject},
            takedown={"applied": applied, **({"ref": "case 7"} if applied else {})},
        )

    async def order(self, name: str, **fields: Any) -> Any:
        url = f"{self.client.url}/admin/api/{name}"
        async with self.client.http.post(url, json=fields, headers=self.headers) as answer:
            body = await answer.json()
            if answer.status != 200:
                raise XrpcError(answer.status, body, answer.headers)
            return body


async def refused(work: Any) -> tuple[int, str]:
    with pytest.raises(XrpcError) as info:
        await work
    return info.value.status, info.value.name
