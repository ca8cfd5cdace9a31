"""One MCP server: its sessions over every transport, and what it lists; whoever need not know of a loss does not."""
