"""What serves devstack-vm-update-image: its steps on a template, and what a devstack says that it needs."""
