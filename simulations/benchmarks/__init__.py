"""Speed and memory, each beside the thing it replaces: ``python -m simulations.benchmarks.NAME [--json]``.

One file a benchmark; the last line it prints is one JSON object. Peers run in the same process, in turns, and
what is reported are medians and ratios: seconds alone say more about the machine than about the code.
"""
