"""Guardrails: what calls to models and tools say, and what comes back, is looked at; masked, refused, or noted."""
