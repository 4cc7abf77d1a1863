"""Ask the service for a sum: ask.py SOCKET NUMBERS."""

import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode())
    print(connection.recv(1000).decode())
