#!/usr/bin/env bash
# Builds the CUDA backend, prepares FlashInfer, and runs the measurement; for a machine with a GPU,
# nvcc, CMake, ninja and PyTorch, and without network.
#
#   bench/cuda/run.sh [options of bench/cuda/bench.py]
#
#   WHEELS      folder with the wheels of FlashInfer and of what it needs [.whl]; none: cuDNN alone
#   SITE        where they are installed [$BUILD/site]
#   BUILD       build folder [build/cuda]
#   LIBRARY     a libtactic_cuda_bench.so that is built already; nothing is built
#   ARCHITECTURES  of the kernels [90a-real: Hopper]
#   OUT         set: results and logs are copied there
#
# The result is $BUILD/cuda_bench.json; the table comes last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

wheels=${WHEELS:-.whl}
build=${BUILD:-build/cuda}
site=${SITE:-$PWD/$build/site}
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
# Hopper alone; and no extension of tvm_ffi's, which would be compiled at the first import.
export FLASHINFER_CUDA_ARCH_LIST=${FLASHINFER_CUDA_ARCH_LIST:-9.0a}
export TVM_FFI_DISABLE_TORCH_C_DLPACK=1
mkdir -p "$build"
log=$PWD/$build

library=${LIBRARY:-$build/libtactic_cuda_bench.so}
build() {
  [[ -z ${LIBRARY-} ]] || return 0
  cmake -S src/cuda -B "$build" -G Ninja -DTACTIC_CUDA=ON -DTACTIC_BUILD_TESTS=OFF \
    -DTACTIC_BUILD_BENCH=ON -DCMAKE_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a-real}" &&
    cmake --build "$build" --target tactic_cuda_bench
}

install_wheels() {
  compgen -G "$wheels/*.whl" >/dev/null || { echo "no wheels in $wheels"; return 1; }
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$wheels"/*.whl
}

# Both at once; FlashInfer's failure leaves cuDNN as the rival, which the table shows.
began=$SECONDS
{ install_wheels && python3 -m bench.cuda.prepare_flashinfer; } >"$log/flashinfer.log" 2>&1 &
preparing=$!
built=0
build >"$log/build.log" 2>&1 || built=$?
echo "build: status $built after $((SECONDS - began)) s"
wait "$preparing" || { echo "FlashInfer is not there:"; tail -n 20 "$log/flashinfer.log"; }
tail -n 3 "$log/flashinfer.log"
echo "prepared after $((SECONDS - began)) s"

save() {
  [[ -n ${OUT-} ]] || return 0
  local file
  for file in cuda_bench.json bench.log build.log flashinfer.log; do
    [[ ! -f $log/$file ]] || cp "$log/$file" "$OUT/"
  done
}
trap save EXIT

((built == 0)) || { tail -n 60 "$log/build.log"; exit 1; }

commit=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
python3 -m bench.cuda.bench --library "$library" \
  --json "$build/cuda_bench.json" --commit "$commit" "$@" 2>&1 | tee "$log/bench.log"
