"""The hospital's HTTPS proxy on the way out; its password is in no message and no log."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from urllib.parse import unquote, urlsplit

from common.enrolment_messages import join_address
from common.errors import SettingsError, UnreachableError

MOST_HEAD = 16384
_OK, _WANTS_PASSWORD = "200", "407"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HospitalProxy:
    """Where it is, and who asks it."""

    def __init__(self, url: str) -> None:
        """Of ``http://[user:password@]host:port``. SettingsError, without the value."""
        expected = "http://[user:password@]host:port"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise SettingsError("https_proxy", "another address", expected) from None
        if parts.scheme != "http" or not host or not port or parts.path.strip("/") or parts.query:
            raise SettingsError("https_proxy", "another address", expected)
        self.host, self.port = host, port
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        secret = b64encode(f"{user}:{password}".encode()).decode()
        self._authorization = f"Proxy-Authorization: Basic {secret}\r\n" if parts.username else ""

    async def connect(self, host: str, port: int) -> Streams:
        """A way through to ``host:port``. UnreachableError, OSError."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=MOST_HEAD)
        try:
            target = join_address(host, port)
            head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{self._authorization}\r\n"
            writer.write(head.encode())
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            writer.close()
            raise self._refused("its answer is none of an HTTPS proxy") from error
        except BaseException:
            writer.close()
            raise
        code = answer[9:12].decode("ascii", "replace")
        if not answer.startswith(b"HTTP/1.") or code != _OK:
            writer.close()
            asks = code == _WANTS_PASSWORD
            raise self._refused("it asks for user and password" if asks else f"it answers {code!r}")
        return reader, writer

    def _refused(self, reason: str) -> UnreachableError:
        return UnreachableError(f"the hospital's proxy {join_address(self.host, self.port)}", reason)
