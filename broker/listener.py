"""The settings of one listener: what a URL cannot say. Part of ``Config``; nothing here opens a file or a socket."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class Certificate(BaseModel):
    """A certificate and its key, as files in PEM form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certfile: Path | None = Field(
        default=None, description="The server's certificate, followed by those of intermediate authorities."
    )
    keyfile: Path | None = Field(
        default=None, description="Its private key, not encrypted. [default: it is in certfile too]"
    )


class Listener(Certificate):
    """A place to listen. tls:// and wss:// need ``certfile``."""

    url: str = Field(
        description="tcp://, tls://, ws:// or wss:// with HOST:PORT (port 0 = any free one), or unix:///PATH. What "
        "follows the port of ws:// and wss:// is the only path that they answer at."
    )
    client_certificates: Literal["none", "optional", "required"] = Field(
        default="none",
        description="Whether clients are asked for a certificate, and refused without one. One that cafile did not "
        "sign is refused in both cases.",
    )
    cafile: Path | None = Field(default=None, description="The authorities that sign the clients' certificates.")
    server_names: dict[str, Certificate] = Field(
        default={},
        description="Other certificates, by the name that a client asks for (SNI): NAME, or *.NAME for all one level "
        "below it.",
    )
    origins: list[str] = Field(
        default=[],
        description="Origins of web pages that may connect to ws:// and wss://, such as https://example.org; '*' = "
        "all. [default: those of this very server]",
    )
    proxy_protocol: bool = Field(
        default=False,
        description="Expect a PROXY protocol header (version 1 or 2) from a load balancer, and refuse all else.",
    )


# A URL alone is a listener without further settings. The tags are the types' names, by which errors find their keys.
AnyListener = Annotated[
    Annotated[str, Tag("str")] | Annotated[Listener, Tag("Listener")],
    Discriminator(lambda value: "Listener" if isinstance(value, dict | Listener) else "str"),
]
