#!/bin/sh
# The packages of requirements-gpu.lock into a virtual environment, for the image and for `make setup GPU=1`:
#
#   sh gpu-packages.sh VENV LOCK
#
# All wheels, the build tools among them, then what is compiled against them: Transformer Engine's torch extension, plain
# C++, whose kernels are in a wheel. It needs headers, and asks nvcc for nothing but its version. MAX_JOBS: compilers at
# one time, as many as cores by default.
set -eu
venv=$1 lock=$2
export PATH="$(cd "$venv" && pwd)/bin:$PATH"
case $(uname -m) in
    x86_64 | aarch64) ;;
    *) echo "error: $lock is for x86_64 and aarch64, this is $(uname -m)" >&2; exit 1 ;;
esac
python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "error: $lock is for Python 3.12 and 3.13, this is $(python --version)" >&2; exit 1; }
command -v g++ >/dev/null || { echo "error: g++ is not there, which compiles Transformer Engine's extension" >&2; exit 1; }
headers=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] || { echo "error: $headers/Python.h is not there: Python's headers are needed (python3-dev)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
locked="pip install --quiet --no-compile --disable-pip-version-check --no-deps --require-hashes"

awk '/^transformer-engine-torch==/ { skip = 1; next } /^[a-z]/ { skip = 0 } !skip' "$lock" > "$work/wheels.lock"
awk '/^[a-z]/ { keep = 0 } /^transformer-engine-torch==/ { keep = 1 } keep' "$lock" > "$work/compiled.lock"
$locked -r "$work/wheels.lock"

nvidia=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
release=$(pip show nvidia-cuda-runtime | sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p')
mkdir -p "$work/cuda/bin"
ln -s "$nvidia/cu13/include" "$work/cuda/include"
printf '#!/bin/sh\necho "release %s"\n' "$release" > "$work/cuda/bin/nvcc"
chmod +x "$work/cuda/bin/nvcc"
CUDA_HOME=$work/cuda CUDNN_HOME=$nvidia/cudnn CPATH=$nvidia/cudnn/include:$nvidia/nccl/include:$nvidia/cu13/include \
    NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    $locked --no-build-isolation -r "$work/compiled.lock"
