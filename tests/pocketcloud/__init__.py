"""A small OpenStack cloud on loopback for tests and a demo: `python -m tests.pocketcloud --help`."""
