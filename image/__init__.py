"""Modules of devstack-vm-update-image: the steps on a template, and what a devstack needs."""
