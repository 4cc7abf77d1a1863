"""A provider's cloud: servers, images, addresses and volumes (nova.py), and its rules, errors and login."""
