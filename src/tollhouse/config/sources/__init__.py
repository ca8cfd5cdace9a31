"""Where configurations come from, and how a change of one is noticed."""
