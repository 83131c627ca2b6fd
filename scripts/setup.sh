#!/bin/sh
# Sets up .venv from the lock: needs Python 3.11, a package index, and libnuma for vLLM's kernels.
set -eu
cd "$(dirname "$0")/.."

# uv does not read pip's settings: pass on where packages may come from.
[ -n "${PIP_FIND_LINKS:-}" ] && export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo "$PIP_FIND_LINKS" | tr ' ' ',')}"
[ -n "${PIP_INDEX_URL:-}" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -n "${PIP_CERT:-}" ] && export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_LINK_MODE="${UV_LINK_MODE:-copy}"

python=$(command -v python3.11 || command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "Python 3.11 is needed; $python is another version." >&2
    exit 1
}
echo "Setting up .venv: about 3 GB, a few minutes on the first time." >&2
"$python" -m venv --clear .venv
.venv/bin/pip install --quiet --disable-pip-version-check "$(grep '^uv==' requirements.lock)"
.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
    -r requirements.lock --override requirements.overrides
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
check='import faiss, ray, torch, vllm, vllm._C'
.venv/bin/python -c "$check" >/dev/null 2>&1 || {
    echo "The environment is incomplete: .venv/bin/python -c '$check' says why." >&2
    echo "If it is libnuma.so.1: apt-get install libnuma1, and again." >&2
    exit 1
}
touch .venv/.complete
