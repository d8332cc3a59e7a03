"""What the teacher knows, as pairs a student can learn from.

Order of reading: ``answers`` (a list of names as text, and back), ``pairs`` (a teacher's ranking becomes
chosen and rejected answers), ``store`` (pairs at rest, encrypted).
"""
