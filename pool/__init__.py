"""Code shared by the scripts that keep the pool: their rules, how they begin, and the commands of vmdatabase.py."""
