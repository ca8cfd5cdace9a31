"""Served: an address of the auth provider, and what answers there."""

from typing import NamedTuple

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response

__all__ = ["Served"]


class Served(NamedTuple):
    """path: as requests have it, with the issuer's own path before it. methods: that are understood. page: people see
    the answer, so that errors are pages too; else they are JSON. open: scripts of any origin may ask and read (no
    cookie counts there). exact: paths below it are not meant."""

    path: str
    methods: frozenset[bytes]
    handler: Handler[Request, Response]
    exact: bool = True
    page: bool = False
    open: bool = False
