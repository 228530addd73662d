#!/usr/bin/env bash
# llama.cpp's server for the CPU, from the sources that the package llama-cpp-python carries; about five minutes on two
# cores. tests/scaling/test_endpoint_real.py and docs/endpoint.md say what for.
#
#   launch/build_llama_server.sh FOLDER        then FOLDER/bin/llama-server, and its converter in FOLDER/llama.cpp
#
# Needs cmake, ninja and a C++ compiler. VERSION of the package: that which docs/endpoint.md was written with.
set -euo pipefail

folder=$(realpath -m "${1:?usage: launch/build_llama_server.sh FOLDER}")
version=${VERSION:-0.3.36}
name=llama_cpp_python-$version

mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --no-deps --no-binary :all: "llama-cpp-python==$version" -d "$folder"
tar -xzf "$folder/$name.tar.gz" -C "$folder"
ln -sfn "$name/vendor/llama.cpp" "$folder/llama.cpp"

cmake -S "$folder/$name/vendor/llama.cpp" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF
nice ninja -C "$folder/build" -j "${JOBS:-2}" llama-server
ln -sfn build/bin "$folder/bin"
"$folder/bin/llama-server" --version
