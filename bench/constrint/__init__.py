"""How fast auto-tuning spaces are enumerated, beside the tools in use.

`python -m bench.constrint.suite` times; `bench.constrint.peers` says how each tool is asked.
"""
