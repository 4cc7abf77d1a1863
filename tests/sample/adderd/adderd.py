"""A service on a socket: reads numbers, and answers their sum, by the library adder."""

import importlib
import socket
import sys


def main() -> None:
    """Serve for ever: adderd.py SOCKET FOLDER_OF_ADDER."""
    sys.path.insert(0, sys.argv[2])
    adder = importlib.import_module("adder")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("listening", file=sys.stderr, flush=True)
        while True:
            connection = listener.accept()[0]
            with connection:
                numbers = [int(word) for word in connection.recv(1000).split()]
                print("asked for", numbers, file=sys.stderr, flush=True)
                try:
                    connection.sendall(str(adder.total(numbers)).encode())
                except AttributeError as err:
                    print("cannot add:", err, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
