"""Answers with public knowledge at hand: an index of the ontology, search in it, and five ways to use both.

Nothing in the index is private, and no query leaves the process that asks.
"""
