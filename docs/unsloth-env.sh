#!/bin/sh
# The environment that tests engine="unsloth" on a machine without a GPU: .venv-unsloth, 1.7 GB.
#
# On a GPU machine `pip install '.[unsloth]'` is all. Here Unsloth comes without its dependencies, and what it needs on a
# CPU is listed, for two reasons: pip would fetch gigabytes of CUDA libraries (triton, xformers, bitsandbytes, torchvision)
# that are never loaded; and Unsloth runs on a CPU from 2026.10.9 on, which asks for a certifi newer than any there is,
# so that pip resolves to 2026.10.7 or refuses.
set -eu
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
UNSLOTH=2026.10.9
HERE=${1:-.venv-unsloth}

test -x "$HERE/bin/python" || "$PYTHON" -m venv "$HERE"
install() { "$HERE/bin/python" -m pip install --quiet "$@"; }
install "$TORCH"
# The newest that Unsloth allows. trl 1.15 alone trains nothing without triton; Unsloth repairs it.
install trl==1.15.0 transformers==5.17.0 datasets==4.8.5 peft==0.21.2 accelerate==1.15.0 psutil pytest --editable '.[tokens]'
install --no-deps "unsloth==$UNSLOTH" "unsloth_zoo==$UNSLOTH"
rm -rf "$HERE"/lib/python3*/site-packages/studio  # a web application of 120 MB
