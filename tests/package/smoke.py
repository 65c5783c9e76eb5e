"""Builds sdist and wheel, and tries the wheel as a user has it: installed in a new environment, outside the checkout.

    python tests/package/smoke.py

The new environment sees the big dependencies of the one that runs this script, but nothing of the checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "certify", "verify", "lipschitz", "compare", "monotonicity", "export", "report")
#: Pages for newcomers: what stands on them is typed, by python and by a shell, in an empty folder.
PAGES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = "--dataset digits --arch cnn-tiny --bound global --eps 0.1 --epochs 1 --ramp 1 --out run"


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed; the environment is emptied of whatever leads back to the checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"  # as an activated environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def script_of(page: Path) -> str:
    """The blocks of a page in one program, the commands by a shell that stops at the first failure."""
    parts = ["import subprocess as _shell"]
    for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        parts.append(body if language == "python" else f"_shell.run(['bash', '-euc', {body!r}], check=True)")
    return "\n".join(parts)


def package_files() -> set[str]:
    """What the checkout has of the package; every folder of it must say that it is one."""
    found = {p for p in (ROOT / "lirpa_lip").rglob("*") if p.suffix in (".py", ".typed")}
    for folder in {p.parent for p in found}:
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py and would be left out"
    return {str(p.relative_to(ROOT)) for p in found} | {"lirpa_lip_cli.py"}


def build(folder: Path) -> Path:
    """The wheel, made from the sdist: so the sdist is whole, too."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    expected = package_files()
    in_wheel = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert in_wheel == expected, f"wheel: {sorted(in_wheel ^ expected)}"
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert expected | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= in_sdist
    print(f"built {wheel.name} and {sdist.name}: {len(expected)} files of the package in each")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel in it; the folder of its commands."""
    venv.create(folder / "venv", with_pip=True)
    commands = folder / "venv" / "bin"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched after the environment's own; .pth files inside it, such as that of an editable
    # installation, are not read.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    # --ignore-installed: a package of the same version among the dependencies must not stand in for this one
    pip = (commands / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed")
    run(*pip, wheel, cwd=folder)
    where = run(commands / "python", "-c", "import lirpa_lip, lirpa_lip_cli; print(lirpa_lip.__file__)", cwd=folder)
    assert where.startswith(str(site)), f"not the installed package: {where}"
    return commands


def use(commands: Path, folder: Path) -> None:
    """Every help, the README's example, a network trained, certified, reported and verified, and the guides."""
    command = commands / "lirpa-lip"
    assert all(name in run(command, "--help", cwd=folder) for name in COMMANDS)
    for name in COMMANDS:
        assert "Usage" in run(command, name, "--help", cwd=folder)
    (folder / "readme.py").write_text(
        re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[0]
    )
    print(run(commands / "python", "readme.py", cwd=folder).splitlines()[0])
    run(command, "train", *TINY.split(), cwd=folder)
    run(command, "certify", "run", *"--limit 10 --pgd-steps 2 --eps 0.01 --radius-steps 0".split(), cwd=folder)
    print(run(command, "report", "run", cwd=folder))
    print(run(command, "verify", "run", *"--data digits --limit 2 --eps 0.01 --no-branch --out v".split(), cwd=folder))
    for page in (page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))):
        scratch = folder / page.relative_to(ROOT).with_suffix("")
        scratch.mkdir(parents=True)
        (scratch / "page.py").write_text(script_of(page), encoding="utf-8")
        run(commands / "python", "page.py", cwd=scratch)
        print(f"what {page.relative_to(ROOT)} shows works")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        assert ROOT not in place.parents
        use(install(build(place), place), place)
    print("the wheel works")
