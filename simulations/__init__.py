"""Local runs of a whole federation: synthetic hospitals, links in memory, comparisons, reports."""
