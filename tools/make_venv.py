"""Makes a virtual environment with pip in it, with nothing but a bare Python: `python3 tools/make_venv.py .venv`.

Debian's Python leaves out what `python -m venv` needs to install pip, unless python3-venv is installed; a pip or a
virtualenv that is already there will do instead. Standard library only, and valid syntax in
old Pythons, so that it can report that they are too old.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)


def main(folder):
    if sys.version_info < OLDEST:
        ours = sys.version.split()[0]
        sys.exit(f"dcsync needs Python 3.11 or newer; {sys.executable} is {ours}. Try: make PYTHON=python3.11")
    if has_pip(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for way in (with_ensurepip, with_our_pip, with_virtualenv):
        if way(folder) and has_pip(folder):
            return
    shutil.rmtree(folder, ignore_errors=True)
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    sys.exit(f"{sys.executable} cannot make virtual environments with pip. On Debian: apt-get install {package}")


def python_of(folder):
    return os.path.join(folder, "bin", "python")


def has_pip(folder):
    """Also False for an environment whose Python was removed, or whose making was interrupted."""
    return os.path.exists(python_of(folder)) and run(python_of(folder), "-m", "pip", "--version")


def with_ensurepip(folder):
    return importlib.util.find_spec("ensurepip") is not None and run(sys.executable, "-m", "venv", folder)


def with_our_pip(folder):
    return (
        importlib.util.find_spec("pip") is not None
        and run(sys.executable, "-m", "venv", "--without-pip", folder)
        and run(sys.executable, "-m", "pip", "--python", python_of(folder), "install", "--quiet", "pip")
    )


def with_virtualenv(folder):
    for command in ((sys.executable, "-m", "virtualenv"), ("virtualenv", "--python", sys.executable)):
        if shutil.which(command[0]) and run(*command, "--quiet", folder):
            return True
    return False


def run(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    main(sys.argv[1])
