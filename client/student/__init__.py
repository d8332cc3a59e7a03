"""The student: a language model with one small adapter, taught by preference pairs.

Order of reading: ``model`` (base, adapter), ``orpo`` (the loss), ``fit`` (a local update), ``decode``
(answers), ``evaluate`` (counts), ``predict`` (a student in a folder).
"""
