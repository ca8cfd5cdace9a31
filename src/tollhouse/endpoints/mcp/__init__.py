"""MCP as agents speak it: both protocol eras, sessions, and what a server asks in the middle of a call."""
