"""A web dyno for the tests: `backend.py PORT NAME [CERT KEY]`. Prints `ready` when it listens.

/            the name, with the request's method
/echo        the request's headers as JSON
/hold        answers after somebody asked for /release
/size        the length of the request's body
/close       closes without an answer
/chunks/N    N chunks, each after the one before was sent
/boom        500
Upgrade: websocket on any path echoes lines raw after the 101.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import signal
import ssl
import sys

NAME = sys.argv[2].encode()
RELEASE = asyncio.Event()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while await answer(reader, writer):
            pass
    writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = [line.split(": ", 1) for line in lines if line]
    headers = {name.lower(): value for name, value in pairs}
    size = await body_size(reader, headers)
    if headers.get("upgrade") == "websocket":
        await echo(reader, writer, headers["sec-websocket-key"])
        return False
    if path == "/close":
        return False
    if path == "/hold":
        await RELEASE.wait()
    if path == "/release":
        RELEASE.set()
    if path.startswith("/chunks/"):
        await chunks(writer, int(path.rpartition("/")[2]))
        return True
    status = b"500 Broken" if path == "/boom" else b"200 OK"
    text = {"/echo": json.dumps(pairs).encode(), "/size": str(size).encode()}.get(path, NAME + b" " + method.encode())
    body = b"" if method == "HEAD" else text
    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nX-Dyno: %s\r\n\r\n%s" % (status, len(text), NAME, body))
    await writer.drain()
    return headers.get("connection", "").lower() != "close"


async def body_size(reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
    if headers.get("transfer-encoding") != "chunked":
        left = size = int(headers.get("content-length", "0"))
        while left:
            left -= len(await reader.readexactly(min(left, 65536)))
        return size
    size = 0
    while length := int(await reader.readline(), 16):
        await reader.readexactly(length + 2)
        size += length
    await reader.readline()
    return size


async def chunks(writer: asyncio.StreamWriter, count: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for index in range(count):
        line = b"line %d\n" % index
        writer.write(b"%x\r\n%s\r\n" % (len(line), line))
        await writer.drain()
        await asyncio.sleep(0.3)  # the stream's own pace: longer than no time-out, shorter than each
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}"
    writer.write(head.encode() + b"\r\n\r\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def main() -> None:
    context = None
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), ssl=context, limit=131072)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


asyncio.run(main())
