"""What is spared while timm is imported, in fresh processes: this one has imported everything long ago."""

from __future__ import annotations

import subprocess
import sys

SPARED = """
import sys
from midog.models.timm_import import import_timm
timm = import_timm()
import torch
assert "sympy" not in sys.modules and "torch._dynamo" not in sys.modules
torch.manual_seed(0)
net = timm.create_model("test_efficientnet", num_classes=1).eval()
x = torch.rand(2, 3, 64, 64)
with torch.inference_mode():
    print(net(x).flatten().tolist())
assert import_timm() is timm
if "compile" in sys.argv:
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
    assert "sympy" in sys.modules and torch._dynamo.__file__
"""
PLAIN = SPARED.replace("timm = import_timm()", "import timm").replace("assert", "assert True or")


def answer(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_compiler_is_not_imported_and_networks_are_the_same() -> None:
    assert answer(SPARED) == answer(PLAIN)


def test_who_compiles_later_gets_the_real_compiler() -> None:
    assert answer(SPARED, "compile")


def test_a_compiler_that_is_there_already_stays() -> None:
    answer(
        "import torch._dynamo as d; from midog.models.timm_import import import_timm; import_timm(); import torch\n"
        "assert torch._dynamo is d and d.__file__"
    )
