"""How fast the scripts are compared with the limit that the cloud sets, on pocketcloud; README.md has the figures.

measure.py    runs, rows, the table and the JSON
The other modules are one benchmark each: `add_arguments(parser)` and `run(options)`, which returns rows.
"""
