"""Model Service Mesh: run many machine-learning models as services."""

__version__ = "0.1.0"
