"""The state of a worker: which one it is, and what is said when it cannot be."""

from pathlib import Path

import pytest

from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.state import file_of, open_state
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.file import FileState
from tollhouse.store.memory import MemoryState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio

KEY = "0123456789abcdef0123456789abcdef"


def test_where_the_file_is() -> None:
    assert file_of(StateSpec(), None) == Path("tollhouse.state")
    assert file_of(StateSpec(), Path("/var/lib/tollhouse.db")) == Path("/var/lib/tollhouse.db.state")
    assert file_of(StateSpec(url="file:/x/y"), Path("/var/lib/tollhouse.db")) == Path("/x/y")
    assert file_of(StateSpec(url="redis://h"), Path("/var/lib/tollhouse.db")) is None


async def test_memory_has_a_file_where_something_must_not_be_forgotten(tmp_path: Path) -> None:
    families = Families(Metrics())
    state = open_state(StateSpec(), Clock(), families)
    assert isinstance(state, MemoryState)
    await state.close()
    file = tmp_path / "state"
    for key in ("", KEY):
        spec = StateSpec(encryption_key=KEY) if key else StateSpec()
        state = open_state(spec, Clock(), families, (b"w" * 32,), file)
        assert isinstance(state, FileState)
        assert state.keys == (key.encode() or b"w" * 32,)
        await state.values.put("iss:keys", b"kept", 60.0)
        await state.values.put("mcp:session", b"not kept", 60.0)
        with pytest.raises(ConfigError, match="state: another process has the state in"):
            open_state(spec, Clock(), families, (), file)
        await state.close()
    state = open_state(StateSpec(encryption_key=KEY), Clock(), families, (), file)
    assert await state.values.get("iss:keys") == b"kept"
    assert await state.values.get("mcp:session") is None
    await state.close()


@pytest.mark.parametrize("file", ["missing/state", "."])
def test_a_file_that_cannot_be_made(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match=r"state: the file .* cannot be used"):
        open_state(StateSpec(), Clock(), Families(Metrics()), (), tmp_path / file)
