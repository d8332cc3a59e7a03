import asyncio

import pytest

from client.hospital_proxy import HospitalProxy
from common.errors import SettingsError, UnreachableError

HOST = "127.0.0.1"


@pytest.mark.parametrize(
    "url",
    ["https://proxy:1", "http://proxy", "http://proxy:x", "http://:80", "http://u:p@proxy:1/path", "a.proxy"],
)
def test_a_proxy_without_an_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="https_proxy: expected http") as caught:
        HospitalProxy(url)
    assert url not in str(caught.value)
    assert caught.value.__cause__ is None


def answered(answer: bytes, url: str = "http://{}:{}") -> tuple[bytes, str]:
    """What a proxy that gives this answer was asked, and the refusal."""

    async def ask() -> tuple[bytes, str]:
        asked = bytearray()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.extend(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(take, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        try:
            _, writer = await HospitalProxy(url.format(HOST, port)).connect("2001:db8::1", 8443)
            writer.close()
            return bytes(asked), ""
        except UnreachableError as error:
            return bytes(asked), error.reason
        finally:
            server.close()

    return asyncio.run(ask())


def test_a_proxy_is_asked_for_the_gateway_with_its_user_and_password() -> None:
    asked, refusal = answered(b"HTTP/1.1 200 OK\r\n\r\n", "http://us%40er:pass@{}:{}")
    assert refusal == ""
    assert asked == (
        b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n"
        b"Proxy-Authorization: Basic dXNAZXI6cGFzcw==\r\n\r\n"
    )
    assert b"Authorization" not in answered(b"HTTP/1.0 200 OK\r\n\r\n")[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "it asks for user and password"),
        (b"HTTP/1.1 403 No\r\n\r\n", "it answers '403'"),
        (b"SSH-2.0-x 200\r\n\r\n", "it answers ' 20'"),
        (b"HTTP/1.1 200 OK\r\n", "its answer is none of an HTTPS proxy"),
        (b"x" * 70000, "its answer is none of an HTTPS proxy"),
    ],
)
def test_a_proxy_that_does_not_let_through_is_refused_with_a_line(answer: bytes, reason: str) -> None:
    assert answered(answer)[1] == reason
