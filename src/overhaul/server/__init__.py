"""The ASGI application: static tree, JSON interface, device reports, status page, health and metrics."""
