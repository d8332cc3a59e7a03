"""Messages of real rounds, a file each, for the fuzzer: ``python -m tests.fuzzing.seeds DIR``."""

import sys
from pathlib import Path

from common.messages import Message
from common.wire import to_bytes
from server.rounds import evaluate, prepare, run_round
from simulations.link import Fault, MemoryLink
from tests.fakes import SITES, fake_sites, tiny_state


def write_seeds(folder: Path) -> int:
    """Every message that goes either way in two rounds and an evaluation; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[bytes] = []

    def keep(message: Message) -> Message:
        # The first byte tells the fuzzer that the digest is to be made; it is not part of the message.
        written.append(b"\x00" + to_bytes(message)[:-32])
        return message

    state = tiny_state()
    sites = fake_sites(state.plan)
    link = MemoryLink(
        {site: lambda message, answer=answer: keep(answer(keep(message))) for site, answer in sites.items()},
        {(1, SITES[1]): Fault.LATE},
    )
    state = prepare(state, link)
    state = run_round(run_round(state, link), link)
    evaluate(state, link)
    for number, data in enumerate(written):
        (folder / f"{number:03d}").write_bytes(data)
    return len(written)


if __name__ == "__main__":
    sys.stdout.write(f"{write_seeds(Path(sys.argv[1]))} messages\n")
