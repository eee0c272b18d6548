"""The node's view of what is declared, and the way of a plan into the proxy.

`view` holds the catalog in memory, `traffic` computes plans from it, `publisher` brings a plan into the proxy without a
moment in which a request could be lost.
"""
