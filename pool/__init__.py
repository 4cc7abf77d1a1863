"""What the scripts that keep the pool share: their rules, how they begin, and the commands of vmdatabase.py."""
