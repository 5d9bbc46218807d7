"""A ProxyCommand of ssh that ends the connection once a number of bytes was sent.

relay.py PORT NAME: the number is at the end of NAME.
"""

import os
import socket
import sys
import threading

CUT = __file__


def main(port: int, remaining: int) -> None:
    """Copy between standard input and output and a port of this machine."""
    with socket.create_connection(("127.0.0.1", port)) as server:

        def back() -> None:
            while data := server.recv(1 << 16):
                os.write(1, data)
            os._exit(0)

        threading.Thread(target=back, daemon=True).start()
        while remaining and (data := os.read(0, min(remaining, 1 << 16))):
            server.sendall(data)
            remaining -= len(data)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2].rpartition("-")[2]))
