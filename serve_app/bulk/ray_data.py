"""A running program as a batch function of Ray Data, which brings pandas and pyarrow along and is not needed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from serve_app.bulk.pool import check_concurrency
from serve_app.client import connect

if TYPE_CHECKING:
    from serve_app.client import Client, Predicted


class PredictBatches:
    """For ``ray.data.Dataset.map_batches``: every row is a call, and its outputs become columns beside its own.

        tickets.map_batches(
            PredictBatches,
            fn_constructor_args=("triage", ["ticket"], ["category"]),
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0,
        )

    Its workers only wait: with a CPU each, Ray Data's default, a small cluster has none left for reading.

    A row that failed has ``None`` in the outputs' columns and the error's code and text in ``error``, so no row is lost
    and the columns are the same for every batch. Calls are sheddable and retried, as with ``Client.predict_many``.

    Args:
        program: its name.
        inputs: columns that are its inputs.
        outputs: of its outputs, those that become columns.
        application: its ``name`` in ``serve_config.yaml``.
        concurrency: calls in work at once, for each worker of Ray Data.
        client: in place of one that connects to the application.

    Raises:
        ValueError: ``concurrency`` is below 1.
    """

    def __init__(
        self,
        program: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        application: str = "switchyard",
        concurrency: int = 32,
        client: Client | None = None,
    ) -> None:
        check_concurrency(concurrency)
        self._program = program
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._concurrency = concurrency
        self._client = client or connect(application)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch's columns, the outputs' and ``error``.

        Raises:
            KeyError: a column of ``inputs`` is not there.
        """
        columns = [_values(batch[name]) for name in self._inputs]
        rows = [dict(zip(self._inputs, values, strict=True)) for values in zip(*columns, strict=True)]
        found: list[Predicted | None] = [None] * len(rows)
        for predicted in self._client.predict_many(self._program, rows, concurrency=self._concurrency):
            found[predicted.index] = predicted
        answers = {name: [_output(predicted, name) for predicted in found] for name in self._outputs}
        return {**batch, **answers, "error": [_error(predicted) for predicted in found]}


def _values(column: Any) -> Iterable[Any]:  # noqa: ANN401 - a numpy array, or a list
    """A column's values as Python's own: JSON has no numpy scalars."""
    values: Iterable[Any] = column.tolist() if hasattr(column, "tolist") else column
    return values


def _output(predicted: Predicted | None, name: str) -> object:
    if predicted is None or predicted.prediction is None:
        return None
    output: object = predicted.prediction.get(name)
    return output


def _error(predicted: Predicted | None) -> str | None:
    if predicted is None:
        return "internal: no answer came back"
    return f"{predicted.error.code}: {predicted.error}" if predicted.error else None
