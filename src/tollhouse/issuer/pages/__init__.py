"""The pages that people see at the auth provider: plain HTML that works without script, one file a page."""
