"""A strict and cheap HTTP/1.1 server for unix sockets whose clients are our own: Envoy and the node process.

`server` reads requests and writes answers, `head` and `body` parse (pure), `status` names errors in HTTP and gRPC. The
workers and the activator are built on it; what strangers reach directly is served by others.
"""
