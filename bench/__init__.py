"""How fast the scripts are, beside the limit that the cloud sets, on pocketcloud; the figures are in README.md here.

measure.py    runs, rows, the table and the JSON
The other modules are one benchmark each: `add_arguments(parser)` and `run(options)`, which returns rows.
"""
