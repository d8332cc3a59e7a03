"""The student: a language model of text or of images with one small adapter, taught by preference pairs.

Order of reading: ``model`` (base, adapter), ``vision`` (how an image comes in), ``orpo`` (the loss), ``fit``
(a local update), ``decode`` (answers), ``evaluate`` (counts), ``predict`` (a student in a folder).
"""
