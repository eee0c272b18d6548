"""What the node tells an adapter about its server, as a file of JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec

from msm.kit.errors import InvalidInput


class ServerSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How the server is started and spoken to; the fields of a `ServingRuntime` that matter here."""

    name: str
    command: tuple[str, ...]
    adapter: str
    protocol: str = "oip"
    env: dict[str, str] = {}
    readiness: str | None = None
    startup_seconds: float = 120.0

    @property
    def one_process_per_model(self) -> bool:
        return self.adapter == "process"

    @property
    def speaks_grpc(self) -> bool:
        return any("{grpc_port}" in text for text in (*self.command, *self.env.values()))

    @property
    def readiness_path(self) -> str:
        return self.readiness or ("/health" if self.protocol == "openai" else "/v2/health/ready")


def read_spec(path: Path) -> ServerSpec:
    """Raises InvalidInput for a file that is not what the node writes."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput("the file that describes the server cannot be read") from error


def server_name(target: str) -> str:
    """The name of a version inside a server: readable, of characters that every server takes, and its own.

    "default/iris/v1" becomes "iris-v1-" and eight hexadecimal digits of the target's SHA-256.
    """
    from hashlib import sha256

    _, model, version = target.split("/")
    return f"{model}-{version}-{sha256(target.encode()).hexdigest()[:8]}".replace(".", "-")
