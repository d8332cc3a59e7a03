"""The coordinator: runs rounds, sums what sites send, and learns nothing else. No torch.

Read ``rounds`` first. The data path, in the order in which a run takes it:

============= ================ ==============================================================================
step          module           contract
============= ================ ==============================================================================
cohort        ``cohort``       who is asked: sites of the plan that are reachable and have not declined
keys          ``session``      the sites' keys for one sum; those of the next ride on the present one
task out      ``summing``      over any ``link``: in memory, over Flower (``grid``), between hospitals
sum           ``session``      masked inputs are checked and added as they come: memory of one, not of all
unmask        ``session``      the survivors' shares take the masks off the sum, and off nothing but the sum
aggregate     ``aggregate``    sum of survivors -> mean delta -> server optimizer -> next adapter
evaluation    ``evaluation``   pooled counts -> rates; only counts leave a site
run           ``app``          Flower's ServerApp: reads the plan and the settings, writes what came out
============= ================ ==============================================================================

Contributions are summed masked (mode ``secagg-v1``, ``common/secagg/README.md``): the coordinator sees only
the sum of the sites' updates. No noise protects single patients yet; a plan's privacy is ``none``.
"""
