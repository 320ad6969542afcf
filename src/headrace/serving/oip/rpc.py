"""The protocol over gRPC: the service `inference.GRPCInferenceService` on a port of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

import grpc

from headrace.errors import EnvironmentFault, HeadraceError, InputError
from headrace.serving.access import Access, TurnedAway
from headrace.serving.metrics import Outcome, ServingMetrics
from headrace.serving.oip import grpc_service_pb2 as pb
from headrace.serving.oip.about import SERVER, About
from headrace.serving.oip.tensors import (
    Input,
    Output,
    candidates_of,
    check_outputs,
    outputs_of,
    parameters_of,
)
from headrace.serving.payload import (
    MAX_BODY_BYTES,
    VERSION_HEADER,
    UnknownModel,
    WrongField,
    is_utf8,
)
from headrace.serving.scored import Scored
from headrace.serving.scorer import Scorer

SERVICE: Final = "inference.GRPCInferenceService"
WORKERS: Final = 8
MOST_CALLS: Final = 512
"""Being answered or waiting for it; more are refused."""
STOP_S: Final = 5.0
_CONTENTS: Final = {"BYTES": "bytes_contents", "INT64": "int64_contents", "FP64": "fp64_contents"}
_TURNED_AWAY: Final = {
    "unknown": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

Answer = Callable[[Any, grpc.ServicerContext], Any]


class RpcServer:
    """Serves gRPC from a small pool of threads until it is stopped."""

    def __init__(
        self, about: About, scorer: Scorer, address: str, access: Access, metrics: ServingMetrics
    ) -> None:
        self._access = access
        self._metrics = metrics
        self._about = about
        self._scorer = scorer
        self._address = address
        limit = [("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.so_reuseport", 0)]
        threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="grpc")
        self._server = grpc.server(threads, options=limit, maximum_concurrent_rpcs=MOST_CALLS)
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _guarded(answer),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, answer in self._answers().items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, methods),)
        )

    def start(self) -> int:
        """Listen; returns the port. Raises `EnvironmentFault` when it is taken."""
        try:
            port: int = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise EnvironmentFault(
                f"{self._address} is not free for gRPC; stop what uses it or set HEADRACE_GRPC_PORT"
            ) from None
        self._server.start()
        return port

    def stop(self) -> None:
        """Refuse new calls, end those in flight."""
        self._server.stop(STOP_S).wait()

    def _answers(self) -> dict[str, Answer]:
        line = self._about.spec.line
        return {
            "ServerLive": lambda _, __: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda _, __: pb.ServerReadyResponse(ready=self._about.is_ready(line)),
            "ServerMetadata": lambda _, __: pb.ServerMetadataResponse(**SERVER),
            "ModelReady": lambda asked, _: pb.ModelReadyResponse(
                ready=self._about.is_ready(asked.name, asked.version or None)
            ),
            "ModelMetadata": lambda asked, _: pb.ModelMetadataResponse(
                **self._about.model(asked.name, asked.version or None)
            ),
            "ModelInfer": self._counted_infer,
        }

    def _counted_infer(self, asked: pb.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        began = time.perf_counter()
        outcome: Outcome = "failed"
        try:
            answer = self._infer(asked, context)
            outcome = "answered"
        except TurnedAway as refusal:
            outcome = "limited" if refusal.reason == "limited" else "denied"
            raise
        except InputError:
            outcome = "refused"
            raise
        except HeadraceError:
            outcome = "unavailable"
            raise
        finally:
            self._metrics.ended("grpc", outcome, time.perf_counter() - began)
        return answer

    def _infer(self, asked: pb.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        told = dict(context.invocation_metadata() or ())
        pin = asked.model_version or told.get(VERSION_HEADER) or None
        self._access.score(told.get("authorization"), pinned=pin is not None)
        self._about.check(asked.model_name, pin)
        if len(asked.id) > 128 or not is_utf8(asked.id):
            raise WrongField(("id",), "is longer than 128 characters; send a shorter one")
        candidates = candidates_of(self._about.spec, _inputs(asked))
        names = [output.name for output in asked.outputs]
        check_outputs(self._about.spec, names)
        scored = self._scorer.score(asked.id or uuid.uuid4().hex, candidates, pin)
        return _answer(self._about.spec.line, scored, names, raw=bool(asked.raw_input_contents))


def _inputs(asked: pb.ModelInferRequest) -> list[Input]:
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise WrongField(
            ("raw_input_contents",), f"has {len(raw)} entries for {len(asked.inputs)} inputs"
        )
    found = []
    for i, tensor in enumerate(asked.inputs):
        data: Any = raw[i] if raw else _contents(i, tensor)
        found.append(Input(tensor.name, tensor.datatype, list(tensor.shape), data))
    return found


def _contents(i: int, tensor: Any) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise WrongField(("inputs", i, "datatype"), f"{tensor.datatype[:80]!a}; send {_KNOWN}")
    values = getattr(tensor.contents, field)
    if tensor.datatype != "BYTES":
        return list(values)
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise WrongField(("inputs", i, "contents"), "is not UTF-8; send text") from None


def _answer(line: str, scored: Scored, names: list[str], *, raw: bool) -> pb.ModelInferResponse:
    answer = pb.ModelInferResponse(
        model_name=line, model_version=scored.version, id=scored.request_id
    )
    for name, value in parameters_of(scored).items():
        if isinstance(value, str):
            answer.parameters[name].string_param = value
        else:
            answer.parameters[name].double_param = value
    by_name = {output.name: output for output in outputs_of(scored)}
    for name in names or by_name:
        output = by_name[name]
        tensor = answer.outputs.add(name=name, datatype=output.datatype, shape=[len(output.data)])
        if raw:
            answer.raw_output_contents.append(output.binary())
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(_plain(output))
    return answer


def _plain(output: Output) -> list[Any]:
    is_text = output.datatype == "BYTES"
    return [text.encode() for text in output.data] if is_text else output.data


def _guarded(answer: Answer) -> Answer:
    """Errors as status codes of gRPC, with the same words as over REST."""

    def guarded(asked: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(asked, context)
        except TurnedAway as refusal:
            if refusal.retry_after_s is not None:
                context.set_trailing_metadata((("retry-after", str(refusal.retry_after_s)),))
            _abort(context, _TURNED_AWAY[refusal.reason], refusal)
        except UnknownModel as problem:
            _abort(context, grpc.StatusCode.NOT_FOUND, problem)
        except InputError as problem:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        except HeadraceError as problem:
            _abort(context, grpc.StatusCode.UNAVAILABLE, problem)

    return guarded


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, problem: Exception) -> NoReturn:
    context.abort(code, str(problem))
    raise AssertionError("abort raises")


_KNOWN: Final = ", ".join(_CONTENTS)
