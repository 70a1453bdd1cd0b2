"""The commands that error messages print as remedies, spelled as they exist where the message appears.

From a checkout the builder is `python export/build_engines.py`, from a wheel it is `diffusevae build`. Everything is quoted
for a POSIX shell, so that a line can be pasted whatever spaces its paths hold.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = "diffusevae-engine"
PROGRAM = "diffusevae"
SCRIPTS = {
    "build": "export/build_engines.py", "fit-prior": "export/fit_latent_prior.py", "fit-setting": "export/fit_setting.py",
    "fit-directions": "export/fit_directions.py",
    "fit-refine": "export/fit_refine.py",
}  # run by path in a checkout


def command(name: str, *arguments: str | os.PathLike[str], root: Path = ROOT) -> str:
    """The line that runs this command here: command("build", "my model.pt") -> "diffusevae build 'my model.pt'"."""
    script = root / SCRIPTS[name] if name in SCRIPTS else None
    if script is not None and is_checkout(root) and script.is_file():
        words = [_python(), _from_here(script)]
    elif _on_path(PROGRAM):
        words = [PROGRAM, name]
    else:
        words = [_python(), "-m", "engine", name]
    return shlex.join([*words, *(os.fspath(argument) for argument in arguments)])


def install_extra(extra: str, root: Path = ROOT) -> str:
    """The line that installs what an extra needs: pip adds to the installed package, or takes the checkout."""
    if is_checkout(root) and not _is_installed():
        return shlex.join(["pip", "install", "-e", f"{_from_here(root)}[{extra}]"])
    return shlex.join(["pip", "install", f"{DISTRIBUTION}[{extra}]"])


def reinstall() -> str:
    """The line that installs this package again: from the checkout it runs from, or from the wheel it came in."""
    if is_checkout():
        return f"pip install -e {package_source()}"
    return f"pip install --force-reinstall --no-deps {package_source()}"


def package_source() -> str:
    """What pip installs this package from: the checkout it runs from, or the wheel it came in."""
    return shlex.quote(_from_here(ROOT)) if is_checkout() else "diffusevae_engine-*.whl"


def is_checkout(root: Path = ROOT) -> bool:
    """Whether engine is imported from its source tree: a wheel puts export/ beside it too, but never setup.py."""
    return (root / "setup.py").is_file()


def _is_installed() -> bool:
    """Whether pip knows the package: a checkout also runs without."""
    try:
        return bool(metadata.version(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        return False


def _python() -> str:
    """`python` where that is this interpreter; otherwise its path, for `python` would be another one or none at all."""
    return "python" if _on_path("python") else _from_here(Path(sys.executable or "python"))


def _on_path(program: str) -> bool:
    """Whether the shell would find this program in the environment that runs this."""
    found = shutil.which(program)
    return found is not None and Path(found).parent == Path(sys.executable).parent


def _from_here(path: Path) -> str:
    """The path as seen from the working folder where it lies below it, and in full elsewhere."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)
