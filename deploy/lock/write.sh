#!/usr/bin/env bash
# Write the lock files of the image: every package with the hashes of its files, at the versions of constraints.txt.
#
#   deploy/lock/write.sh INDEX_OR_FOLDER_WITH_CPU_BUILDS_OF_TORCH
#
# For Python 3.11 on x86-64. uv (`pip install uv`) reads metadata only: no package is downloaded.
set -euo pipefail
cd "$(dirname "$0")/../.."
cpu=${1:?name an index or a folder with CPU builds of torch}
common=(pyproject.toml --extra heif --extra masks --extra otel --extra video --constraint constraints.txt --generate-hashes
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet)

lock() {  # lock FILE HEADER OPTION...
    local file=$1 header=$2
    shift 2
    uv pip compile "${common[@]}" "$@" --output-file "$file.new" > /dev/null
    { echo "# $header"; echo "# Written by deploy/lock/write.sh."; cat "$file.new"; } > "$file"
    rm "$file.new"
}

if [[ -d $cpu ]]; then where=(--find-links "$cpu"); else where=(--index "$cpu" --index-strategy unsafe-best-match); fi
lock deploy/lock/cpu.txt "The CPU image (Dockerfile, target cpu)." "${where[@]}"
lock deploy/lock/cuda.txt "The CUDA image (Dockerfile, target cuda)."
