"""A site's patients: read, checked, split, and shown to models only as far as a model may see them.

Read in this order: `records` (what a patient is, who may take part), `ages`, `photos` (images under limits),
`notes` (what reaches a model), `splits`, and `importers` (folders and published formats). Nothing else in
the site opens a patient's file.
"""
