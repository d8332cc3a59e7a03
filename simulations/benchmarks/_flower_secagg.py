"""Flower 1.41's SecAgg+ as a peer: the work of its clients and of its server, without messages.

The clients run Flower's own stage functions (``flwr/client/mod/secure_aggregation/secaggplus_mod.py``). The
server's steps are lines inside the methods of ``SecAggPlusWorkflow``, between sending and receiving; they are
repeated here in the same order with the same functions of Flower's, and the tests hold them beside the
methods themselves. Every client is every other's neighbour, and the settings are the workflow's defaults.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import common.flower  # noqa: F401

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

FIRST_NODE = 1001
THRESHOLD = 0.6
SETTINGS = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=THRESHOLD)
# Flower multiplies by examples / max_weight before it rounds: the largest weight keeps all of its resolution.
FULL_WEIGHT = int(SETTINGS.max_weight)
QUANTIZATION_STEP = 2 * SETTINGS.clipping_range / SETTINGS.quantization_range

Upload = Sequence[bytes]
Arrays = list[NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class FlowerClient:
    """A client after the share-keys stage.

    Attributes:
        state: Flower's own: keys, seeds, shares.
        shares: The other clients' sealed shares, as the server forwards them with the next request.
    """

    state: SecAggPlusState
    shares: ConfigRecord

    @property
    def node(self) -> int:
        """The id of the client's node."""
        return self.state.nid


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the server has after the unmask request.

    Attributes:
        survivors: Nodes whose masked vector is in the sum.
        shares_by_node: Of a survivor the shares of its self mask's seed, of a dropout those of its key.
        public_keys: Every node's first public key, from which pairwise masks come.
    """

    survivors: frozenset[int]
    shares_by_node: Mapping[int, Sequence[bytes]]
    public_keys: Mapping[int, bytes]


def make_clients(count: int) -> list[FlowerClient]:
    """Clients with keys and shares: Flower's stages setup and share-keys."""
    states = [SecAggPlusState(nid=FIRST_NODE + number) for number in range(count)]
    settings = ConfigRecord(
        {
            Key.SAMPLE_NUMBER: count,
            Key.SHARE_NUMBER: count,
            Key.THRESHOLD: max(round(THRESHOLD * count), 2),
            Key.CLIPPING_RANGE: SETTINGS.clipping_range,
            Key.TARGET_RANGE: SETTINGS.quantization_range,
            Key.MOD_RANGE: SETTINGS.modulus_range,
            Key.MAX_WEIGHT: SETTINGS.max_weight,
        }
    )
    for state in states:
        _setup(state, settings)
    keys = ConfigRecord({str(state.nid): [state.pk1, state.pk2] for state in states})
    sent = {state.nid: _share_keys(state, keys) for state in states}
    return [FlowerClient(state=state, shares=_forwarded(state.nid, sent)) for state in states]


def _forwarded(node: int, sent: Mapping[int, Mapping[str, Any]]) -> ConfigRecord:
    """The sealed shares for ``node``, out of those that all nodes sent."""
    sources, ciphertexts = [], []
    for source, answer in sent.items():
        for destination, ciphertext in zip(
            answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True
        ):
            if destination == node:
                sources.append(source)
                ciphertexts.append(ciphertext)
    return ConfigRecord({Key.SOURCE_LIST: sources, Key.CIPHERTEXT_LIST: ciphertexts})


def mask(client: FlowerClient, vector: NDArray[np.float32], *, examples: int = FULL_WEIGHT) -> Upload:
    """What ``client`` uploads for ``vector``: Flower's masked-vector stage.

    Flower hands the vector to that stage as bytes, as here; writing those bytes is a few percent of the time.
    """
    parameters = ndarrays_to_parameters([vector])
    answer = _collect_masked_vectors(client.state, client.shares, examples, parameters)
    return cast(list[bytes], answer[Key.MASKED_PARAMETERS])


def bytes_up(upload: Upload) -> int:
    """The size of an upload."""
    return sum(len(array) for array in upload)


def server_sum(uploads: Sequence[Upload]) -> Arrays:
    """The masked sum: lines 515-529 of ``secaggplus_workflow.py``, ``collect_masked_vectors_stage``."""
    total: Arrays | None = None
    for upload in uploads:
        masked = [bytes_to_ndarray(array) for array in upload]
        total = masked if total is None else parameters_addition(total, masked)
    if total is None:
        raise ValueError("Expected at least one upload, got none")
    return parameters_mod(total, SETTINGS.modulus_range)


def ask_for_shares(clients: Sequence[FlowerClient], *, dropped: Collection[int] = ()) -> Answers:
    """What the survivors answer when ``dropped`` nodes sent no masked vector: Flower's unmask stage.

    The survivors have masked before: it is in that stage that Flower's client opens the sealed shares.
    """
    survivors = [client for client in clients if client.node not in dropped]
    request = unmask_request(active=[client.node for client in survivors], dead=dropped)
    shares_by_node: dict[int, list[bytes]] = {client.node: [] for client in clients}
    for client in survivors:
        for node, share in answer_unmask(client, request):
            shares_by_node[node].append(share)
    return Answers(
        survivors=frozenset(client.node for client in survivors),
        shares_by_node=shares_by_node,
        public_keys={client.node: client.state.pk1 for client in clients},
    )


def unmask_request(*, active: Collection[int], dead: Collection[int]) -> ConfigRecord:
    """The server's request for shares. Flower's client checks its types and the length of ``active``."""
    return ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)})


def answer_unmask(client: FlowerClient, request: ConfigRecord) -> list[tuple[int, bytes]]:
    """A client's answer: shares in the order of the request, each with the node whose secret it is of."""
    answer = _unmask(client.state, request)
    nodes, shares = cast(list[int], answer[Key.NODE_ID_LIST]), cast(list[bytes], answer[Key.SHARE_LIST])
    return list(zip(nodes, shares, strict=True))


def server_unmask(total: Arrays, answers: Answers) -> NDArray[np.float64]:
    """The survivors' weighted mean: ``unmask_stage`` from the shares on, with the dequantization."""
    return dequantized(without_masks(total, answers), len(answers.survivors))


def without_masks(total: Arrays, answers: Answers) -> Arrays:
    """The sum without masks, still integers: lines 602-639 of ``secaggplus_workflow.py``."""
    for node, shares in answers.shares_by_node.items():
        secret = combine_shares(list(shares))
        if node in answers.survivors:
            total = parameters_subtraction(total, expanded(secret, total))
            continue
        for neighbour, public_key in answers.public_keys.items():
            if neighbour != node:
                seed = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public_key))
                total = without_pairwise_mask(total, seed, of=neighbour, towards=node)
    return parameters_mod(total, SETTINGS.modulus_range)


def without_pairwise_mask(total: Arrays, seed: bytes, *, of: int, towards: int) -> Arrays:
    """The sum without what node ``of`` put in for its pair with ``towards``: plus at the larger id."""
    pairwise_mask = expanded(seed, total)
    if of > towards:
        return parameters_subtraction(total, pairwise_mask)
    return parameters_addition(total, pairwise_mask)


def expanded(seed: bytes, like: Arrays) -> Arrays:
    """The mask that Flower grows from ``seed``."""
    return cast(Arrays, pseudo_rand_gen(seed, SETTINGS.modulus_range, get_parameters_shape(like)))


def dequantized(unmasked: Arrays, survivors: int) -> NDArray[np.float64]:
    """The weighted mean out of the integers: lines 640-650 of ``secaggplus_workflow.py``."""
    total_ratio, arrays = factor_extract(unmasked)
    scale = SETTINGS.quantization_range / total_ratio
    vectors = dequantize(arrays, SETTINGS.clipping_range, SETTINGS.quantization_range)
    offset = -(survivors - 1) * SETTINGS.clipping_range
    for vector in vectors:
        vector += offset
        vector *= scale
    return vectors[0]
