"""auto_LiRPA, as it is installed here, works and gives the bounds of its version 0.7.1.

`data/auto_lirpa_071_bounds.json` was made with auto_LiRPA 0.7.1 from its repository, on torch 2.13, CPU, by
    python tests/autolirpa/test_compat.py > tests/data/auto_lirpa_071_bounds.json
from networks whose weights are sines, so that no random generator enters.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from lirpa_lip.autolirpa import compat as _compat
from lirpa_lip.errors import MissingDependencyError

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # isort: skip

REFERENCE = Path(__file__).parents[1] / "data" / "auto_lirpa_071_bounds.json"
METHODS = ("IBP", "CROWN-IBP", "CROWN", "forward")
EPS = {2.0: 0.5, float("inf"): 0.05}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(2 * 6 * 6, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(h + self.second(h)).flatten(1))


def networks():
    return {
        "conv": nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 3),
        ),
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.ReLU(), nn.Linear(7, 3)),
        "residual": Residual(),
    }  # fmt: skip


def sines(shape, phase):
    values = torch.arange(1, 1 + shape.numel(), dtype=torch.float64)
    return torch.sin(1.7 * values + phase).reshape(shape).float()


def bounds(name, norm, method):
    model = networks()[name].eval()
    with torch.no_grad():
        for phase, parameter in enumerate(model.parameters()):
            parameter.copy_(sines(parameter.shape, phase) / parameter[0].numel() ** 0.5)
    x = (1 + sines(torch.Size((2, 1, 6, 6)), 0.5)) / 2
    bounded = BoundedModule(model, torch.empty_like(x))
    ball = BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=EPS[norm]))
    with torch.no_grad():
        return torch.stack(bounded.compute_bounds(x=(ball,), method=method))


def cases():
    return [(name, norm, method) for name in networks() for norm in EPS for method in METHODS]


@pytest.mark.parametrize(("name", "norm", "method"), cases())
def test_bounds_are_those_of_071(name, norm, method):
    expected = torch.tensor(json.loads(REFERENCE.read_text())[f"{name} {norm} {method}"])
    torch.testing.assert_close(bounds(name, norm, method), expected, rtol=1e-4, atol=1e-4)


def test_parameters_can_be_listed_and_added():
    bounded = BoundedModule(Residual(), torch.zeros(1, 1, 6, 6))
    names = {"first.weight", "first.bias", "second.weight", "second.bias", "last.weight", "last.bias"}
    for remove_duplicate in (True, False):
        assert {name for name, _ in bounded.named_parameters(remove_duplicate=remove_duplicate)} == names
    bounded.extra = nn.Parameter(torch.zeros(1))
    assert "extra" in dict(bounded.named_parameters())


def test_a_second_call_changes_nothing():
    before = (BoundedModule._named_members, BoundedModule.register_parameter, dict(vars(torch._C.Node)))
    declared = list(_compat._declared)
    _compat.declare_torchvision_operators()
    assert _compat.import_auto_lirpa() is sys.modules["auto_LiRPA"]
    assert (BoundedModule._named_members, BoundedModule.register_parameter, dict(vars(torch._C.Node))) == before
    assert _compat._declared == declared


def test_what_is_there_stays():
    class Current:
        def _named_members(self, get_members_fn, prefix="", recurse=True, remove_duplicate=True):
            pass

        def register_parameter(self, name, param):
            pass

    before = dict(vars(Current))
    _compat.accept_remove_duplicate(Current)
    _compat.use_current_register_parameter(Current)
    assert dict(vars(Current)) == before


def test_existing_names_of_torch_and_numpy_stay(monkeypatch):
    import torch.onnx.symbolic_helper as helper

    arraysetops = types.ModuleType("numpy.lib.arraysetops")
    arraysetops.__spec__ = types.SimpleNamespace(name="numpy.lib.arraysetops")
    monkeypatch.setitem(sys.modules, "numpy.lib.arraysetops", arraysetops)
    monkeypatch.setattr(helper, "_set_opset_version", "theirs", raising=False)
    _compat.restore_numpy_isin()
    _compat.restore_set_opset_version()
    assert sys.modules["numpy.lib.arraysetops"] is arraysetops
    assert helper._set_opset_version == "theirs"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_without_auto_lirpa_the_error_says_how_to_get_it():
    result = run("import sys; sys.modules['auto_LiRPA'] = None\nimport lirpa_lip")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert MissingDependencyError.__name__ in last
    assert "pip install --no-deps auto_LiRPA==0.3" in last


def test_importing_says_nothing_of_its_own_use_of_torch():
    """Whatever a torch of tomorrow calls deprecated when auto_LiRPA is imported is not for a user to mend."""
    warn = "import warnings, torch\nwarnings.simplefilter('always')\nscript = torch.jit.script\n"
    warn += (
        "def deprecated(*a, **k):\n    warnings.warn('torch.jit.script', FutureWarning)\n    return script(*a, **k)\n"
    )
    result = run(warn + "torch.jit.script = deprecated\nimport lirpa_lip")
    assert result.returncode == 0 and "FutureWarning" not in result.stderr, result.stderr


def test_torchvision_imports_beside_any_torch():
    result = run("import lirpa_lip, torchvision; print(torchvision.transforms.Compose)")
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    rows = {f"{name} {norm} {method}": bounds(name, norm, method).tolist() for name, norm, method in cases()}
    print("{\n" + ",\n".join(f"{json.dumps(case)}: {json.dumps(row)}" for case, row in rows.items()) + "\n}")
