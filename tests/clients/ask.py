"""Ask a server as the users of one client do; what came back goes into a .npz file.

    python ask.py CLIENT URL FILE

It runs under the clients' own packages. The server has `digits` (a classifier), `echo` (answers
what it is given) and `words` (a classifier of text). An assertion that fails says so on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS = np.random.default_rng(0).integers(0, 16, (5, 64))
WORDS = np.array([["good"], ["bad"], ["größer"]], object)
EVERYTHING = {
    "BOOL": np.array([[True, False]]),
    **{f"UINT{bits}": np.array([[0, 2**bits - 1]], f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{
        f"INT{bits}": np.array([[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]], f"i{bits // 8}")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.array([[0.1, -6e4]], "f2"),
    "FP32": np.array([[0.1, -3e38]], "f4"),
    "FP64": np.array([[0.1, -1e308]]),
    "BYTES": np.array([["a", "größer"]], object),
}
METHODS = ("predict", "predict_proba")

Ask = Callable[[str, dict[str, tuple[str, Any]], tuple[str, ...]], dict[str, Any]]


def questions(ask: Ask) -> dict[str, Any]:
    """The same questions for every client: name of a result to its array."""
    found = {}
    for datatype in ("FP32", "FP64", "INT64"):
        rows = ROWS.astype({"FP32": "f4", "FP64": "f8", "INT64": "i8"}[datatype])
        for name, array in ask("digits", {"x": (datatype, rows)}, METHODS).items():
            found[f"digits/{datatype}/{name}"] = array
    for datatype, values in EVERYTHING.items():
        (array,) = ask("echo", {"x": (datatype, values)}, ()).values()
        found[f"echo/{datatype}"] = array
    (found["words/predict"],) = ask("words", {"x": ("BYTES", WORDS)}, ()).values()
    return found


def triton(url: str) -> dict[str, Any]:
    """tritonclient.http by its defaults: binary tensors both ways, no Content-Type."""
    import tritonclient.http as client

    with client.InferenceServerClient(url.removeprefix("http://")) as server:
        assert server.is_server_live()
        assert server.is_server_ready()
        assert server.is_model_ready("digits", "v1")
        assert "mlserverless" == server.get_server_metadata()["name"]
        assert ["v1"] == server.get_model_metadata("digits")["versions"]
        names = {each["name"] for each in server.get_model_repository_index()}
        assert {"digits", "echo", "words"} == names

        def ask(model: str, tensors: Any, methods: tuple[str, ...], **more: Any) -> dict[str, Any]:
            inputs = []
            for name, (datatype, values) in tensors.items():
                inputs.append(client.InferInput(name, values.shape, datatype))
                inputs[-1].set_data_from_numpy(values)
            outputs = [client.InferRequestedOutput(name) for name in methods] or None
            answer = server.infer(model, inputs, outputs=outputs, **more)
            names = [output["name"] for output in answer.get_response()["outputs"]]
            return {name: answer.as_numpy(name) for name in names}

        found = questions(ask)
        for algorithm in ("gzip", "deflate"):
            packed = ask(
                "digits",
                {"x": ("FP32", ROWS.astype("f4"))},
                METHODS,
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            for name, array in packed.items():
                assert np.array_equal(array, found[f"digits/FP32/{name}"])
        return found


def triton_control(url: str) -> dict[str, Any]:
    """The repository API by tritonclient: unload, load, and what a model answers between."""
    import tritonclient.http as client
    from tritonclient.utils import InferenceServerException

    with client.InferenceServerClient(url.removeprefix("http://")) as server:
        server.unload_model("digits")
        assert not server.is_model_ready("digits")
        with contextlib.suppress(InferenceServerException):
            server.get_model_metadata("digits")
            raise AssertionError("an unloaded model has no metadata")
        server.load_model("digits")
        assert server.is_model_ready("digits")
    return {}


def triton_aio(url: str) -> dict[str, Any]:
    """tritonclient.http.aio: octet-stream for everything, gzip asked for always."""
    import tritonclient.http.aio as client

    async def all_questions() -> dict[str, Any]:
        async with client.InferenceServerClient(url.removeprefix("http://")) as server:
            assert await server.is_server_live()
            assert await server.is_model_ready("digits")
            assert ["v1"] == (await server.get_model_metadata("digits"))["versions"]
            assert 3 == len(await server.get_model_repository_index())

            async def infer(model: str, tensors: Any, methods: tuple[str, ...]) -> dict[str, Any]:
                inputs = []
                for name, (datatype, values) in tensors.items():
                    inputs.append(client.InferInput(name, values.shape, datatype))
                    inputs[-1].set_data_from_numpy(values)
                outputs = [client.InferRequestedOutput(name) for name in methods] or None
                answer = await server.infer(model, inputs, outputs=outputs)
                names = [output["name"] for output in answer.get_response()["outputs"]]
                return {name: answer.as_numpy(name) for name in names}

            loop = asyncio.get_running_loop()

            def ask(*question: Any) -> dict[str, Any]:
                return asyncio.run_coroutine_threadsafe(infer(*question), loop).result()

            return await asyncio.to_thread(questions, ask)

    return asyncio.run(all_questions())


def kserve(url: str) -> dict[str, Any]:
    """Kserve's InferenceRESTClient."""
    from kserve.inference_client import InferenceRESTClient, RESTConfig
    from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput

    async def all_questions() -> dict[str, Any]:
        server = InferenceRESTClient(RESTConfig(protocol="v2"))
        assert await server.is_server_live(url)
        assert await server.is_server_ready(url)
        assert await server.is_model_ready(url, "digits")

        async def infer(model: str, tensors: Any, methods: tuple[str, ...]) -> dict[str, Any]:
            inputs = []
            for name, (datatype, values) in tensors.items():
                inputs.append(InferInput(name, list(values.shape), datatype))
                inputs[-1].set_data_from_numpy(values, binary_data=datatype != "BYTES")
            outputs = [RequestedOutput(name) for name in methods]
            request = InferRequest(model, inputs, request_outputs=outputs)
            answer: Any = await server.infer(url, request, model_name=model)
            return {output.name: output.as_numpy() for output in answer.outputs}

        loop = asyncio.get_running_loop()

        def ask(*question: Any) -> dict[str, Any]:
            return asyncio.run_coroutine_threadsafe(infer(*question), loop).result()

        found = await asyncio.to_thread(questions, ask)
        await server.close()
        return found

    return asyncio.run(all_questions())


def array_of(output: dict[str, Any]) -> Any:
    """An output of JSON as a numpy array of its datatype."""
    kinds = {"BYTES": "O", "BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}
    datatype = output["datatype"]
    dtype = np.dtype(kinds.get(datatype, datatype.lower()))
    return np.array(output["data"], dtype).reshape(output["shape"])


def httpx(url: str) -> dict[str, Any]:
    """JSON by httpx, nested as `tolist` makes it."""
    import httpx as client

    with client.Client(base_url=url) as server:

        def ask(model: str, tensors: Any, methods: tuple[str, ...]) -> dict[str, Any]:
            inputs = [
                {"name": name, "datatype": datatype, "shape": values.shape, "data": values.tolist()}
                for name, (datatype, values) in tensors.items()
            ]
            question = {"inputs": inputs, "outputs": [{"name": name} for name in methods]}
            answer = server.post(f"/v2/models/{model}/infer", json=question).raise_for_status()
            return {each["name"]: array_of(each) for each in json.loads(answer.text)["outputs"]}

        return questions(ask)


if __name__ == "__main__":
    _, chosen, address, file = sys.argv
    results = globals()[chosen](address)
    np.savez(file, **{name.replace("/", "~"): array for name, array in results.items()})
