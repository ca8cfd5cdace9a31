"""What the tests of authentication stand on: tokens of a real key, a door to knock at, an issuer on a socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

import pytest
from joserfc import jwt as jose
from joserfc.jwk import ECKey
from tests.fixtures.gone import until_gone
from tests.unit.policies.floor import layer, parts, request, respond

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.core.http import Request, Response
from tollhouse.policies.authenticate import AUTHENTICATE, AuthenticateSpec
from tollhouse.policies.base import Parts

ISSUER = "https://idp.example.com"
KEY = ECKey.generate_key("P-256", {"kid": "one"})
NEXT = ECKey.generate_key("P-256", {"kid": "two"})


def jwks(*keys: Any) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def issuer(**more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audiences": ["tollhouse"], "jwks": jwks(KEY)} | more


def token(key: Any = KEY, header: dict[str, Any] | None = None, **claims: Any) -> bytes:
    values = {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": int(time()) + 86_400} | claims
    values = {name: value for name, value in values.items() if value is not None}
    fields = {"alg": "ES256", "kid": key.kid} | (header or {})
    return jose.encode(fields, values, key, algorithms=[fields["alg"]]).encode()


def bearer(credential: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + credential)


class Door:
    """An authentication policy with a handler behind it."""

    def __init__(self, spec: dict[str, Any] | None, p: Parts | None = None, **more: Any) -> None:
        self.parts = p or parts(**more)
        layers = () if spec is None else (layer(AuthenticateSpec.model_validate(spec)),)
        policy = AUTHENTICATE.make(layers, self.parts)
        assert policy is not None
        self.handler = compose((policy,), respond)

    async def send(self, asked: Request) -> Response:
        return await self.handler(asked)

    async def enter(self, *headers: tuple[bytes, bytes], target: bytes = b"/mcp", method: bytes = b"POST") -> Principal:
        asked = request(method, target, *headers)
        await self.handler(asked)
        principal = asked.context.principal
        assert principal is not None
        return principal

    async def refused(self, *headers: tuple[bytes, bytes], target: bytes = b"/mcp", method: bytes = b"POST") -> Failure:
        with pytest.raises(Failure) as caught:
            await self.enter(*headers, target=target, method=method)
        return caught.value

    async def close(self) -> None:
        await self.parts.shared.close()  # type: ignore[attr-defined]


class Idp:
    """An issuer that serves documents by their path; real sockets. asked: (target, head, body) of each request."""

    def __init__(self) -> None:
        self.document: Any = jwks(KEY)
        self.documents: dict[str, Any] = {}
        self.fields = ""
        self.status = 200
        self.requests: list[tuple[str, bytes, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    @property
    def asked(self) -> int:
        return len(self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with until_gone(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                body = await reader.readexactly(length)
                target = head.split(b" ", 2)[1].decode()
                self.requests.append((target, head, body))
                await self.gate.wait()
                status, fields, content = self.answer(target, head, body)
                writer.write(
                    f"HTTP/1.1 {status} x\r\ncontent-length: {len(content)}\r\n{fields}\r\n".encode() + content
                )
                await writer.drain()

    def answer(self, target: str, head: bytes, body: bytes) -> tuple[int, str, bytes]:
        document = self.documents.get(target.partition("?")[0], None if self.documents else self.document)
        if callable(document):
            document = document(head, body)
        if isinstance(document, tuple):
            return document
        if document is None:
            return 404, "", b""
        return self.status, self.fields, document if isinstance(document, bytes) else json.dumps(document).encode()


@asynccontextmanager
async def idp() -> AsyncIterator[tuple[Idp, str]]:
    """An issuer, and the URL of its keys."""
    it = Idp()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    async with server:
        it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield it, f"{it.url}/jwks"
        server.close()
