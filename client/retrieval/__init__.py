"""Answers with public knowledge at hand: an index of the ontology, search in it, and five ways to use both.

Order of reading: ``index`` and ``hpo`` (what is known), ``retrievers`` (search), ``questions``, ``readers``
and ``lists`` (asking and reading), ``methods``, ``judging``, ``answering``. Nothing in the index is private,
and no query leaves the process that asks.
"""
