"""The peer is measured on work that is right, and that is Flower's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simulations.benchmarks import _flower_secagg as flower
from simulations.grid import task_identity

# isort: split
from flwr.app import ConfigRecord, RecordDict
from flwr.common import Code, FitRes, Parameters, Status, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState

SITES, LENGTH = 5, 1000
# Stochastic rounding errs by less than one step; the float32 arithmetic before it by a little more.
TOLERANCE = 2 * flower.QUANTIZATION_STEP


def drawn_vectors(count: int = SITES) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=LENGTH).astype(np.float32) for _ in range(count)]


def test_the_unmasked_mean_is_the_plain_mean() -> None:
    clients, vectors = flower.make_clients(SITES), drawn_vectors()
    uploads = [flower.mask(client, vector) for client, vector in zip(clients, vectors, strict=True)]
    mean = flower.server_unmask(flower.server_sum(uploads), flower.ask_for_shares(clients))
    np.testing.assert_allclose(mean, np.mean(vectors, axis=0, dtype=np.float64), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dropped", [{0}, {4}, {1, 3}])
def test_the_unmasked_mean_of_the_survivors_is_their_plain_mean(dropped: set[int]) -> None:
    clients, vectors = flower.make_clients(SITES), drawn_vectors()
    uploads = [flower.mask(clients[i], vectors[i]) for i in range(SITES) if i not in dropped]
    answers = flower.ask_for_shares(clients, dropped=[clients[i].node for i in dropped])
    mean = flower.server_unmask(flower.server_sum(uploads), answers)
    plain = np.mean([vectors[i] for i in range(SITES) if i not in dropped], axis=0, dtype=np.float64)
    np.testing.assert_allclose(mean, plain, rtol=0, atol=TOLERANCE)


def test_too_few_survivors_are_refused() -> None:
    clients = flower.make_clients(SITES)
    with pytest.raises(ValueError, match="smaller than threshold"):
        flower.ask_for_shares(clients, dropped=[client.node for client in clients[:3]])


def test_an_upload_has_eight_bytes_a_value() -> None:
    client = flower.make_clients(SITES)[0]
    size = flower.bytes_up(flower.mask(client, drawn_vectors()[0]))
    assert 8 * LENGTH <= size < 8 * LENGTH + 300


@pytest.mark.parametrize("dropped", [set(), {1}])
def test_the_servers_lines_are_those_of_flowers_workflow(dropped: set[int]) -> None:
    clients, vectors = flower.make_clients(SITES), drawn_vectors()
    uploads = {clients[i].node: flower.mask(clients[i], vectors[i]) for i in range(SITES) if i not in dropped}
    total = flower.server_sum(list(uploads.values()))
    answers = flower.ask_for_shares(clients, dropped=[clients[i].node for i in dropped])
    mean = flower.server_unmask(total, answers)

    total_of_workflow, mean_of_workflow = through_workflow(clients, uploads)
    for ours, theirs in zip(total, total_of_workflow, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(mean, mean_of_workflow)


def through_workflow(
    clients: list[flower.FlowerClient], uploads: dict[int, flower.Upload]
) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """The masked sum and the mean out of the workflow's own methods, with replies made here."""
    nodes = {client.node for client in clients}
    settings = flower.SETTINGS
    state = WorkflowState(
        nid_to_proxies=dict.fromkeys(nodes),  # type: ignore[arg-type]
        nid_to_fitins={node: RecordDict() for node in nodes},
        sampled_node_ids=set(nodes),
        active_node_ids=set(nodes),
        threshold=clients[0].state.threshold,
        clipping_range=settings.clipping_range,
        quantization_range=settings.quantization_range,
        mod_range=settings.modulus_range,
        nid_to_neighbours={node: set(nodes) for node in nodes},
        nid_to_publickeys={client.node: [client.state.pk1, client.state.pk2] for client in clients},
        forward_srcs={node: [] for node in nodes},
        forward_ciphertexts={node: [] for node in nodes},
    )
    released: list[NDArray[Any]] = []

    def keep(_round: int, results: list[Any], _failures: list[Any]) -> tuple[None, dict[str, Any]]:
        released.extend(parameters_to_ndarrays(results[0][1].parameters))
        return None, {}

    records = {MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})}
    context: Any = SimpleNamespace(
        state=SimpleNamespace(config_records=records), strategy=SimpleNamespace(aggregate_fit=keep)
    )

    def masked(_messages: Any, timeout: float | None) -> list[Any]:
        return [reply(node, {Key.MASKED_PARAMETERS: list(upload)}) for node, upload in uploads.items()]

    def unmasked(messages: Any, timeout: float | None) -> list[Any]:
        asked = {
            message.metadata.dst_node_id: message.content.config_records[RECORD_KEY_CONFIGS]
            for message in messages
        }
        answers = {c.node: flower.answer_unmask(c, asked[c.node]) for c in clients if c.node in asked}
        return [
            reply(node, {Key.NODE_ID_LIST: [of for of, _ in found], Key.SHARE_LIST: [s for _, s in found]})
            for node, found in answers.items()
        ]

    with task_identity(run_id=1, node_id=1, task_id=0):
        grid: Any = SimpleNamespace(send_and_receive=masked)
        assert settings.collect_masked_vectors_stage(grid, context, state)
        total = state.aggregate_ndarrays
        grid.send_and_receive = unmasked
        assert settings.unmask_stage(grid, context, state)
    return total, released[0]


def reply(node: int, values: dict[str, Any]) -> Any:
    result = FitRes(Status(Code.OK, ""), Parameters([], ""), num_examples=flower.FULL_WEIGHT, metrics={})
    content = fitres_to_recorddict(result, keep_input=True)
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(values)
    return SimpleNamespace(
        has_error=lambda: False, metadata=SimpleNamespace(src_node_id=node), content=content
    )
