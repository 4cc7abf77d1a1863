"""Faults, kills and storms, counted: the real scripts against pocketcloud and the Jenkins stand-in, then an audit.

events.py     what happened, so that a violation can be explained
points.py     the moments between two outside calls, at one of which a run is killed
world.py      two clouds, a Jenkins, a pool, other people's things; peace
faults.py     the catalogue of faults
audit.py      what must be so at any time, and after peace
storm.py      rounds of many scripts at once, with faults and signals drawn by a seed
killpoints.py one run for each point
"""
