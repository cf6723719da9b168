"""OpenVINO's CPU plugin on the ONNX operator, in its latency mode."""

from __future__ import annotations

from typing import Any

import openvino
import torch

from bench.layers.problem import Contender, Kind, Problem, Results
from bench.peers.onnx_model import model_of


def contender(problem: Problem, kind: Kind, threads: int) -> Contender | None:
    """Inference of the cells that ONNX has."""
    model = None if kind.d_weights else model_of(problem)
    if model is None:
        return None
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the machine has it
            "ENABLE_CPU_PINNING": False,  # where threads may run is the benchmark's to say
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(problem.inputs.numpy(), shared_memory=True))

    def call() -> Any:
        request.infer()
        return request

    def read(done: Any) -> Results:
        return {"h": torch.from_numpy(done.get_output_tensor().data.copy())[:, 0]}

    return Contender("openvino", call, read)
