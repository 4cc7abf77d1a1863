"""Faults, kills and storms: the real scripts run against pocketcloud and the Jenkins stand-in, then comes an audit.

events.py     a log of what happened, to explain violations
points.py     the moments between two outside calls; a run is killed at one of them
world.py      two clouds, a Jenkins, a pool, other people's things; peace
faults.py     the catalogue of faults
audit.py      what must be true at any time, and after peace
storm.py      rounds of many scripts at once, with faults and signals drawn from a seed
killpoints.py one run for each point
"""
