#!/bin/sh
# Installs cosmos-hpc and all that it stands on into a virtual environment.
# Usage: install.sh VENV EXTRA   (environment: PYTHON, the interpreter to use)
set -eu
venv=${1:?a folder for the virtual environment}
extra=${2:?worker, train or dev}
cd "$(dirname "$0")"

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
python=
for candidate in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
    if "$candidate" -c "$supported" 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$(${PYTHON:-python3} --version 2>/dev/null || echo "no Python")
    echo "cosmos-hpc needs Python 3.10, 3.11 or 3.12 (found $found): NeMo needs numpy<2," \
        "which has no wheels beyond. Install one and run: make PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian keeps these in a package of their own.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -y -q "$package"
    else
        echo "$python cannot make virtual environments: install $package" >&2
        exit 1
    fi
fi

echo "installing cosmos-hpc and what it stands on into $venv: gigabytes, some minutes" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
if [ ! -e /dev/nvidia0 ] && ! pip show -q torch 2>/dev/null; then
    # The build of the default package index brings gigabytes of CUDA. Take a CPU build that pip
    # knows of, else let uv take it from PyTorch's own index.
    pip install -q -c constraints.txt "torch==$torch+cpu" 2>/dev/null || {
        pip install -q uv
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu \
            -c constraints.txt "torch==$torch"
    } || echo "no CPU build of torch $torch can be had here; taking the default one" >&2
fi
pip install -q -c constraints.txt -e ".[$extra]"
