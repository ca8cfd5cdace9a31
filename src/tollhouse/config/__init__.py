"""Configuration: a file becomes a Config, with every mistake in it found at its place, or nothing at all.

`parse.load` reads, `spec.Config` is what comes of it, `sources` tell when to read again, `schema` is for editors.
"""
