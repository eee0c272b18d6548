"""Durable state: the store protocol, the embedded store, the catalog of resources and the event log on top."""
