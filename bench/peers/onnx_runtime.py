"""onnxruntime's CPU provider on the ONNX operator. Its output lies where it always lies."""

from __future__ import annotations

from typing import Any

import onnxruntime
import torch

from bench.layers.problem import Contender, Kind, Problem, Results
from bench.peers.onnx_model import INPUT, OUTPUT, model_of


def contender(problem: Problem, kind: Kind, threads: int) -> Contender | None:
    """Inference of the cells that ONNX has."""
    model = None if kind.d_weights else model_of(problem)
    if model is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Idle threads that spin would take the processor from whoever has the next turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    dims = problem.dims
    y = problem.inputs.new_empty((dims.T, 1, dims.B, dims.D))
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT, problem.inputs.numpy())
    binding.bind_ortvalue_output(OUTPUT, onnxruntime.OrtValue.ortvalue_from_numpy(y.numpy()))

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding

    def read(done: Any) -> Results:
        return {"h": torch.from_numpy(done.copy_outputs_to_cpu()[0])[:, 0]}

    return Contender("onnxruntime", call, read)
