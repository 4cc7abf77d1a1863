"""A real OpenStack on loopback whose servers are pocketcloud's machines: `python -m tests.realcloud --help`."""
