"""The parts of devstack-vm-status.py: the facts that it reads, its statistics, pictures, page and metrics."""
