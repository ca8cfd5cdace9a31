"""Tollhouse: a self-hosted gateway between AI agents and everything they call."""
