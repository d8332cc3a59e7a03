"""Secure aggregation ``secagg-v1``: the coordinator learns a sum of vectors, and nothing else about them.

Bonawitz et al. 2017, with the changes of ``README.md`` beside this file, which has the protocol on one page.

``keys``        each site's fresh keys of one sum, signed; rosters; the transcript; keys of masks
``sharing``     a secret in n shares, t of which give it back
``envelopes``   shares, sealed by one site for another
``masks``       keystreams, added to a vector and taken away
``packing``     words of fewer than 32 bits, for the upload
``statements``  what sites sign
``survivors``   who is in the sum and who is not, and which such lists a site accepts
``reference``   the same in plain Python, word by word; for tests

Nothing here knows messages, plans or Flower. All randomness is the operating system's.
"""
