"""Values and the fold. No I/O, no asyncio, nothing of the layers above."""
