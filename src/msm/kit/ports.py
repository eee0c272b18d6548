"""Who listens on a TCP port of this machine: for the message of somebody who wanted it too."""

from __future__ import annotations

import psutil


def listener_of(port: int) -> str:
    """The process that listens on `port`, as "NAME (pid N)"; "another process" when this user may not know it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:] == (port,):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # not allowed to look, or it has just ended
    return "another process"
