"""The platform's message bus: Redis over TLS, with what it holds disposable."""
