"""A model has one graph, whatever else of ONNX the process has used."""

import subprocess
import sys
import textwrap

import torch.onnx.symbolic_helper

from lirpa_lip.wrapping.trace import hooks

GRAPH = """
    import importlib, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from torch import nn
    import torch.nn.functional as F
    for version in sys.argv[1:]:
        importlib.import_module(f"torch.onnx.symbolic_opset{version}")
    from lirpa_lip import BoundedModule
    from auto_LiRPA import BoundedTensor, PerturbationLpNorm

    class Model(nn.Module):
        def forward(self, x):
            one, two = x.unbind(1)
            x = F.pad(torch.stack([x[:, -1], one, two.clamp(min=0)], 1), (1, 0), value=0.5)
            return torch.squeeze(x[:, 1:], 1).clamp(-1, 1).flatten(1)

    torch.manual_seed(0)
    bounded = BoundedModule(Model(), torch.rand(2, 2, 3))
    for node in bounded._modules.values():
        print(type(node).__name__, [n.name for n in node.inputs])
    print(bounded.local_lipschitz(x=BoundedTensor(torch.rand(2, 2, 3), PerturbationLpNorm(norm=2, eps=0.1))).upper)
"""


def graph(*versions: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GRAPH), *versions], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_later_versions_of_onnx_change_nothing():
    assert graph() == graph("11", "12", "13", "18")


def test_the_version_of_the_process_stays():
    settings = torch.onnx.symbolic_helper.check_training_mode.__globals__["GLOBALS"]
    before = settings.export_onnx_opset_version
    with hooks._opset(hooks.OPSET):
        assert settings.export_onnx_opset_version == hooks.OPSET
    assert settings.export_onnx_opset_version == before
