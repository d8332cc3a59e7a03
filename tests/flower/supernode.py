"""``flower-supernode`` with a heartbeat of 10 s instead of 30: a killed one is missed after 20 s, not 60.

Flower has neither a flag nor a variable for it. The SuperLink takes each node's interval from its heartbeats,
10 s at least. A file of its own, to be run by its path.
"""

from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.supercore import heartbeat
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode

if __name__ == "__main__":
    # In these two modules alone: elsewhere the same name is how long a ClientApp may take to start.
    heartbeat.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_MIN_INTERVAL
    fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_MIN_INTERVAL
    flower_supernode()
