"""What a command has a running gateway do: where the state is that gateway's own memory, nobody else can.

Rule: the token is read from the gateway's own file and goes to the admin API on this machine alone; where operators
have keys of their own, or TLS stands before it, they ask themselves.
"""

import http.client
import json
from collections.abc import Mapping
from typing import Final

from tollhouse import admin
from tollhouse.config.spec import Config
from tollhouse.wire.mcp.letters import visible

__all__ = ["answered", "post"]

_PATIENCE: Final = 10.0
_MOST: Final = 1 << 20


def post(config: Config, path: str, body: Mapping[str, str], page: str) -> str:
    """Ask with that body. page: of the documentation, for who has to ask himself. What is wrong, "" when it is done."""
    return answered(config, path, body, page)[0]


def answered(
    config: Config, path: str, body: Mapping[str, str] | None, page: str, patience: float = _PATIENCE
) -> tuple[str, bytes]:
    """The same, and what was answered. patience: seconds."""
    spec = config.server.admin
    if spec is None:
        return (
            "what it changes is in the gateway's own memory: set `server.admin`, by which it can be told, or a `state`",
            b"",
        )
    if spec.keys or spec.tls is not None:
        return f"operators show their own keys to this admin API: POST {path} there, as {page} says", b""
    file = admin.token_file(config)
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return f"the admin API's token cannot be read in {file}: is the gateway running, and is this its user?", b""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(spec.address, timeout=patience)
    try:
        connection.request("POST", path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        said = answer.read(_MOST)
    except (OSError, http.client.HTTPException) as error:
        return f"the admin API at {spec.address} cannot be asked: {error}", b""
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        return f"the admin API refused it with {answer.status}: {visible(said.decode('utf-8', 'replace')[:500])}", b""
    return "", said
