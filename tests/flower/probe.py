"""A Flower App that looks at Flower: what a ServerApp sees of nodes that do not answer, and why not.

``nodes`` of the run's configuration is a JSON object of node numbers by name; ``out`` gets what was seen.
The run ends when all but ``real`` are done and there is a file ``started``.
"""

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

TTL_S = {"quiet": 3.0}
LONG_TTL_S = 60.0
LONGEST_S = 60.0

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    started_file = Path(str(context.run_config["started"]))
    nodes = json.loads(str(context.run_config["nodes"]))
    seen: dict[str, Any] = {"online": list(grid.get_node_ids())}
    sent, started = {}, time.monotonic()
    for name, node in nodes.items():
        message = Message(RecordDict(), node, MessageType.TRAIN, ttl=message_ttl(name))
        (message_id,) = grid.push_messages([message])
        sent[message_id] = name
    while sent and time.monotonic() - started < LONGEST_S:
        for message_id in list(sent):
            for reply in grid.pull_messages([message_id]):
                name = sent.pop(message_id)
                seen[name] = {
                    "message_id": message_id,
                    "reply_to": reply.metadata.reply_to_message_id,
                    "source": reply.metadata.src_node_id,
                    "code": reply.error.code if reply.has_error() else None,
                    "seconds": time.monotonic() - started,
                    "ttl_s": message_ttl(name),
                }
        if set(sent.values()) <= {"real"} and started_file.exists():
            break
        time.sleep(0.2)
    Path(str(context.run_config["out"])).write_text(json.dumps(seen))


def message_ttl(name: str) -> float:
    return TTL_S.get(name, LONG_TTL_S)
