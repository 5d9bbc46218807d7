"""Connections of clients that don't keep to HTTP, or leave when they like."""

import asyncio
import json
import random
import socket
import struct
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"


def request_bytes(path: str, body: dict[str, Any], extra: int = 0) -> bytes:
    """A request; its body is announced ``extra`` bytes longer than it is."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content) + extra}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class RawConnection:
    """A connection on which anything may be sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> "RawConnection":
        """Connect to this machine's port."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def send(self, content: bytes) -> None:
        """Send; the server may have closed the connection."""
        self.writer.write(content)
        await self.writer.drain()

    async def read_events(self, count: int) -> int:
        """Read until so many server-sent events have come, or nothing more does; how many came."""
        received = b""
        while received.count(b"data: ") < count and (part := await self.reader.read(1024)):
            received += part
        return received.count(b"data: ")

    async def wait_until_closed(self) -> None:
        """Read until the server closes the connection."""
        while await self.reader.read(65536):
            pass

    async def leave(self, draw: random.Random) -> None:
        """Close the connection, politely or with a reset."""
        if draw.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        else:
            self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return
