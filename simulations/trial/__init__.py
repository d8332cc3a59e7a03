"""A federation of real processes on one machine, as four hospitals and a coordinator would run it.

``hospitals`` draws the patients, the models and the plan; ``hosts`` is the network, the loopback or a network
namespace for each host with a firewall; ``stand`` types what the administrators type and keeps the daemons
running; ``equal`` runs the same plan in one process and compares the adapters; ``chaos`` kills.

    python -m simulations.trial --help
"""
