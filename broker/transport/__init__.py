"""Adapters between sockets and the engine."""
