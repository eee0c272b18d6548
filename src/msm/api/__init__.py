"""The HTTP API of a node: declared models, the node's state, events, logs, and the status page."""

from msm.api.app import create_app, create_gateway_app
from msm.api.auth import TokenFile
from msm.api.deps import ApiDeps, NodeView
from msm.api.server import HttpServer, bind_tcp, bind_unix

__all__ = [
    "ApiDeps",
    "HttpServer",
    "NodeView",
    "TokenFile",
    "bind_tcp",
    "bind_unix",
    "create_app",
    "create_gateway_app",
]
