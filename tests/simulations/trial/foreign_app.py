"""A Flower App of somebody who can start runs and wants to run his own code at the hospitals."""

import json
import time
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

LONGEST_S = 90.0

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = list(grid.get_node_ids())
    tasks = [Message(RecordDict(), node, MessageType.TRAIN, ttl=60) for node in nodes]
    waiting, answers = set(grid.push_messages(tasks)), []
    deadline = time.monotonic() + LONGEST_S
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            head = reply.content["head"]["json"] if reply.has_content() else f"error {reply.error.code}"
            answers.append(str(head))
        time.sleep(0.2)
    Path(str(context.run_config["out"])).write_text(json.dumps(answers))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    Path(str(context.run_config["mark"])).write_text("ran")
    return Message(RecordDict(), reply_to=message)
