"""What both ends of a federation must agree on.

Neither a site nor the coordinator is imported here, and no deep learning library: everything runs on
NumPy, so that the coordinator installs without one.

Read in this order: `ids` and `errors` name things and failures, `tracks` says what is asked of a
student, `plan` what a run agrees on, `adapter` what is trained, `fixedpoint` how it is summed,
`messages` how it travels, `metrics` and `calibration` how it is judged from counts that add up.
`canonical` and `schema` are the two ends of a file: a value to bytes that have a digest, and strictly
back; `settings` does the latter for what a person writes.
"""
