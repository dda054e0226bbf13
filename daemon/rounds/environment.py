"""The environment of a round: built from the variables listed here, whatever else the daemon's holds.

A launcher is told by its environment what to start, so a variable of another job (torchrun, MPI, Slurm, an
`accelerate config`) would make a round wait for ranks that do not exist, or train in another way.
"""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

from configs.round import RoundSettings

PASSED_ON = (
    # user, place and language
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR", "TMPDIR", "TEMP", "TMP", "XDG_*"),
    # loader, allocator, interpreter
    *("LD_*", "DYLD_*", "GLIBC_TUNABLES", "MALLOC_*", "_RJEM_MALLOC_CONF", "TCMALLOC_*", "MIMALLOC_*"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "PYTHONHASHSEED"),
    *("PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONMALLOC"),
    *("PYTHONOPTIMIZE", "VIRTUAL_ENV", "CONDA_*"),
    # accelerators, and links between them
    *("CUDA_*", "NVIDIA_*", "CUBLAS_*", "CUDNN_*", "HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "AMD_*", "MIOPEN_*", "ZE_*"),
    *("ONEAPI_*", "SYCL_*", "NCCL_*", "RCCL_*", "GLOO_*", "UCX_*", "FI_*", "TP_SOCKET_IFNAME"),
    # torch and the libraries that it computes with
    *("TORCH_*", "PYTORCH_*", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "TRITON_*", "CC", "CXX", "GOMP_*", "KMP_*", "MKL_*"),
    *("OMP_WAIT_POLICY", "OMP_PLACES", "OMP_PROC_BIND", "OPENBLAS_*", "DNNL_*", "ONEDNN_*", "ATEN_*", "NNPACK_*"),
    # models, and the way to them
    *("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "SAFETENSORS_*", "*_PROXY", "*_proxy", "SSL_CERT_*"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # traces: `tracing.spans.carrier` adds the place of the round in them
    "OTEL_*",
    # mfmd's own to its children
    *("_MFMD_*", "MFMD_FAILPOINT"),
)
"""Names of the variables that a round is given, as shell patterns; `round.advanced.environment` adds to them. The
launcher sets OMP_NUM_THREADS from `round.advanced.threads`."""

MEMORY_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""glibc's allocator keeps what a training step frees instead of returning it to the system: touching new pages costs
more than most operations on maps of 32 MiB and more (docs/explanation/decisions/0010). A round ends with its process,
so nothing is kept for long."""


def round_environment(settings: RoundSettings, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a round: what is passed on of `inherited`, and what mfmd sets.

    Output is unbuffered, so the log shows what happened before a kill. The user's settings of the allocator win over
    mfmd's.
    """
    patterns = (*PASSED_ON, *settings.advanced.environment)
    passed = {name: value for name, value in inherited.items() if any(fnmatchcase(name, item) for item in patterns)}
    environment = {**MEMORY_KEPT, **passed, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if settings.device == "cpu" and settings.processes > 1:
        environment["ACCELERATE_USE_CPU"] = "true"  # `--cpu` alone would start a single process
    return environment
