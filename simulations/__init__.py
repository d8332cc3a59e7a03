"""Local runs of a whole federation: synthetic hospitals, links in memory, comparisons, reports.

Importing the package comes before every library that would look for newer models or report its use, and
keeps them offline.
"""

from common.offline import stay_offline

stay_offline()
