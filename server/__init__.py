"""The coordinator: runs rounds, sums what sites send, and learns nothing else. No torch.

Read ``rounds`` first. The data path, in the order in which a run takes it:

============= ===================== =========================================================================
step          module                contract
============= ===================== =========================================================================
enrolment     ``enrolment``         a one-time token -> a certificate, a node, a place in ``site_records``
processes     ``daemon``            SuperLink, what starts runs, gateway and enrolment, kept running
plan          ``offers``            checked, then put where sites find it; it runs where they approve it
run           ``runs``              a run of ours, worked on by one of Flower's after the other
app           ``app``               Flower's ServerApp: reads plan and settings, writes what came out
journal       ``journal``           intent before a site is asked, state after a round: a crash loses neither
lanes         ``lanes``             all tracks of the run at once, in the same exchanges
cohort        ``cohort``            who is asked: sites of the plan that are reachable and have not declined
keys          ``session``           the sites' keys for one sum; those of the next ride on the present one
budget        ``budget``            the round is in the coordinator's own ledger before anybody is asked
task out      ``summing``           over any ``link``: in memory, over Flower (``grid``), between hospitals
door          ``gateway``           passes what a site's own SuperNode needs; revocation holds at once
ledger heads  ``ledger_heads``      where each site's ledger stands, countersigned
sum           ``session``           masked inputs are checked and added as they come, and none is kept
unmask        ``session``           the survivors' shares take the masks off the sum, and off nothing else
aggregate     ``aggregate``         sum of survivors -> mean delta -> server optimizer -> next adapter
evaluation    ``evaluation``        pooled counts -> rates; only counts leave a site
============= ===================== =========================================================================

Contributions are summed masked (mode ``secagg-v1``, ``common/secagg/README.md``): the coordinator sees only
the sum of the sites' updates. Where a plan promises something to patients, every site adds its share of
noise before it masks, and the sum carries all of it (``common/privacy/mechanism.py``).
"""
