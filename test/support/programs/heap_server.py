"""A threaded TCP server with a large heap: heap_server.py PORT MIB.

Every connection has a thread. A line with a number is answered with that number, after a part of
the heap has been checked and rewritten; a heap that changed is answered with ERROR.
"""

import socket
import sys
import threading
import zlib


class Heap:
    """Blocks that know their checksum, one lock for each hundred of them."""

    def __init__(self, mib):
        self.blocks = [bytes([i % 251]) * 1000 for i in range(mib * 1000)]
        self.sums = {i: zlib.crc32(block) for i, block in enumerate(self.blocks)}
        self.locks = [threading.Lock() for _ in range(100)]

    def turn(self, number):
        index = number * 7919 % len(self.blocks)
        with self.locks[index % 100]:
            if zlib.crc32(self.blocks[index]) != self.sums[index]:
                return False
            fresh = (b"%09d" % number) * 111 + b"."
            self.blocks[index] = fresh
            self.sums[index] = zlib.crc32(fresh)
        return True


def serve(connection, heap):
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            number = int(line)
            answer = number if heap.turn(number) else "ERROR"
            connection.sendall(b"%s\r\n" % str(answer).encode())


def main():
    heap = Heap(int(sys.argv[2]))
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    print("READY", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection, heap), daemon=True).start()


main()
