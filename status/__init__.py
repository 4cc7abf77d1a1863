"""What devstack-vm-status.py is made of: what it reads, its statistics, pictures, page and metrics."""
