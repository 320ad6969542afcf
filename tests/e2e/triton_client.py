"""What a stock client sees, run by `test_stock_client` in an environment that has no Headrace.

    python triton_client.py HTTP_ADDRESS GRPC_ADDRESS LINE

Prints JSON: for each way of asking the scores, the version and the parameters of the answer.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

USERS = np.array(["u1", "u2", "ü3"], dtype=np.object_)
POSITIONS = np.array([0, 1, 2], dtype=np.int64)
DISCOUNTS = np.array([0.1, 0.25, 0.5], dtype=np.float64)


def inputs(kind, binary=None):
    """Three candidates as tensors of the client's own kind."""
    found = []
    for name, datatype, values in (
        ("user_id", "BYTES", USERS),
        ("position", "INT64", POSITIONS),
        ("discount", "FP64", DISCOUNTS),
    ):
        tensor = kind.InferInput(name, [3], datatype)
        if binary is None:
            tensor.set_data_from_numpy(values)
        else:
            tensor.set_data_from_numpy(values, binary_data=binary)
        found.append(tensor)
    return found


def told(answer, head):
    """The tensors of an answer as numpy reads them."""
    names = answer.as_numpy("impression_id").tolist()  # texts from JSON, bytes from binary
    return {
        "scores": answer.as_numpy("score").tolist(),
        "impressions": [name if isinstance(name, str) else name.decode() for name in names],
        "version": head["model_version"],
    }


def over_http(address, line):
    """Health, metadata and inference, in JSON and in binary."""
    client = triton_http.InferenceServerClient(address)
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(line),
        "model_version_ready": client.is_model_ready(line, "v000002"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(line),
    }
    for name, binary in (("json", False), ("binary", True)):
        outputs = [
            triton_http.InferRequestedOutput(output, binary_data=binary)
            for output in ("score", "impression_id")
        ]
        answer = client.infer(line, inputs(triton_http, binary), request_id=name, outputs=outputs)
        found[name] = told(answer, answer.get_response())
    answer = client.infer(line, inputs(triton_http, True), model_version="v000002")
    found["pinned"] = told(answer, answer.get_response())
    try:
        client.infer("nobody", inputs(triton_http, True))
    except InferenceServerException as problem:
        found["unknown"] = str(problem)
    return found


def over_grpc(address, line):
    """The same over gRPC."""
    client = triton_grpc.InferenceServerClient(address)
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(line),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(line, as_json=True),
    }
    answer = client.infer(line, inputs(triton_grpc), request_id="rpc")
    found["raw"] = told(answer, answer.get_response(as_json=True))
    answer = client.infer(line, inputs(triton_grpc), model_version="v000002")
    found["pinned"] = told(answer, answer.get_response(as_json=True))
    try:
        client.infer("nobody", inputs(triton_grpc))
    except InferenceServerException as problem:
        found["unknown"] = f"{problem.status()} {problem.message()}"
    return found


if __name__ == "__main__":
    http, grpc, line = sys.argv[1:]
    print(json.dumps({"http": over_http(http, line), "grpc": over_grpc(grpc, line)}))  # noqa: T201
