"""A PostgreSQL server, once for all tests here that need one."""

from collections.abc import Iterator

import pytest
from tests.fixtures.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one
