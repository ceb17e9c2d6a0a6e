"""The benchmark suite: what a modified backward costs, against what people would use instead.

Run as ``python -m bench`` from the repository's root. Imports pyrevgrad as installed.
"""
