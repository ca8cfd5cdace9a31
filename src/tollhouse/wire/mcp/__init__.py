"""The Model Context Protocol's messages, revisions, names and lists. Pure: no I/O, no asyncio."""
