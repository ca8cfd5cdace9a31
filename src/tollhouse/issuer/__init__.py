"""The auth provider: an OAuth 2.1 and OpenID Connect server of short-lived tokens, itself a set of Handlers."""
