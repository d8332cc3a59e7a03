"""The coordinator: runs rounds, sums what sites send, and learns nothing else. No torch.

Read ``rounds`` first. The data path, in the order in which a run takes it:

============= ================ ==============================================================================
step          module           contract
============= ================ ==============================================================================
cohort        ``cohort``       who is asked: sites of the plan that are reachable and have not declined
task out      ``rounds``       the same code over every link; ``grid`` is the link over Flower
sum           ``aggregate``    contributions are checked and added as they come: memory of one, not of all
aggregate     ``aggregate``    sum of survivors -> mean delta -> server optimizer -> next adapter
evaluation    ``evaluation``   pooled counts -> rates; only counts leave a site
run           ``app``          Flower's ServerApp: reads the plan and the settings, writes what came out
============= ================ ==============================================================================

Contributions are summed in the clear (mode ``clear``): the coordinator could read each site's words. The
sum is of integers modulo 2**32 already, so that masks and noise can join without another format.
"""
