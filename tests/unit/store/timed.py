"""Scripts whose time a test moves."""

from tollhouse.store.redis_counter import script
from tollhouse.store.redis_line import Script

__all__ = ["timed"]


def timed(key: str, *names: str) -> Script:
    """The script, with the time of a key instead of the server's."""
    text = script(*names).text.decode()
    said = "local time = redis.call('TIME')\n"
    assert text.count(said) == 1
    return Script(text.replace(said, f"local time = {{redis.call('GET', '{key}'), '0'}}\n"))
