"""Importing lirpa_lip leaves auto_LiRPA as it is; register() changes one class, and unregister() puts it back."""

from __future__ import annotations

import json
import subprocess
import sys

import auto_LiRPA
import pytest
import torch
from auto_LiRPA.bound_op_map import bound_op_map
from torch import nn

import lirpa_lip
from lirpa_lip.wrapping.max_pool_bound import BoundMaxPool

# Everything that lives in auto_LiRPA's modules and classes, and what it reads of torch's state, before and after.
SNAPSHOT = """
import importlib.util, json, pathlib, sys, types

def state():
    import torch
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] != "auto_LiRPA" or module is None:
            continue
        for key, value in vars(module).items():
            found[f"{name}:{key}"] = id(value)
            if isinstance(value, dict) and not key.startswith("__"):
                found.update({f"{name}:{key}[{k!r}]": id(v) for k, v in value.items()})
            if isinstance(value, type) and value.__module__.startswith("auto_LiRPA"):
                found.update({f"{value.__qualname__}.{k}": id(v) for k, v in vars(value).items() if k[:2] != "__"})
                found[f"{value.__qualname__}.__init__"] = id(value.__init__)
    found["default type"] = str(torch.get_default_dtype())
    found["tf32"] = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    found["threads"], found["grad"] = torch.get_num_threads(), torch.is_grad_enabled()
    found["seed"] = torch.initial_seed()
    return found

try:
    import auto_LiRPA
except ImportError:  # 0.3 on a current torch: with what `_compat` puts back, and no more
    folder = pathlib.Path(importlib.util.find_spec("lirpa_lip").origin).parent
    package = types.ModuleType("lirpa_lip")
    package.__path__ = [str(folder)]
    sys.modules["lirpa_lip"] = package
    import lirpa_lip.autolirpa.compat
    kept = "lirpa_lip.autolirpa.compat"
    for name in [name for name in sys.modules if name.split(".")[0] == "lirpa_lip" and name != kept]:
        del sys.modules[name]
before = state()
import lirpa_lip, lirpa_lip.losses, lirpa_lip.training.trainer, lirpa_lip.jacobian.constants
after = state()
print(json.dumps(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))))
"""


def changed_by_import() -> list[str]:
    result = subprocess.run([sys.executable, "-c", SNAPSHOT], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_importing_changes_nothing_of_theirs():
    assert changed_by_import() == []


def everything(cls: type) -> dict:
    return {**vars(cls), "map": dict(bound_op_map)}


class Derived(auto_LiRPA.BoundedModule):
    pass


@pytest.mark.parametrize("cls", [auto_LiRPA.BoundedModule, Derived])
def test_unregister_puts_everything_back(cls):
    before = everything(cls)
    lirpa_lip.register(cls)
    assert everything(cls) != before and dict(bound_op_map) == before["map"]
    lirpa_lip.unregister(cls)
    assert everything(cls) == before


def pooled() -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, stride=1), nn.Flatten(), nn.Linear(32, 2))
    return nn.Sequential(*layers).eval(), torch.rand(1, 1, 8, 8)


def makes_ours(bounded) -> bool:
    return any(isinstance(node, BoundMaxPool) for node in bounded._modules.values())


def test_operators_are_ours_where_asked_for():
    """In our class and in a registered one, and nowhere else; what the user gave stays the user's."""
    model, x = pooled()
    assert makes_ours(lirpa_lip.BoundedModule(model, x))
    assert not makes_ours(auto_LiRPA.BoundedModule(model, x))
    lirpa_lip.register()
    try:
        assert makes_ours(auto_LiRPA.BoundedModule(model, x))
    finally:
        lirpa_lip.unregister()
    assert not makes_ours(auto_LiRPA.BoundedModule(model, x))


class Mine(auto_LiRPA.bound_ops.BoundMaxPool):
    pass


@pytest.mark.parametrize("how", ["per module", "for all modules"])
def test_the_users_own_operators_go_first(how):
    model, x = pooled()
    if how == "per module":
        bounded = lirpa_lip.BoundedModule(model, x, None, "auto", False, {"onnx::MaxPool": Mine})
        assert bounded.custom_ops == {"onnx::MaxPool": Mine}
    else:
        auto_LiRPA.register_custom_op("onnx::MaxPool", Mine)
        try:
            bounded = lirpa_lip.BoundedModule(model, x)
        finally:
            auto_LiRPA.unregister_custom_op("onnx::MaxPool")
    assert any(type(node) is Mine for node in bounded._modules.values())
