"""`mfmd import --unsafe-pickle`: the flag is needed, and the warning is on stderr where a person sees it."""

import json
import os
from pathlib import Path

import torch

from adapters.networks.build import build_network
from configs.settings import Settings
from daemon.exit_codes import ExitCode


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_pickle_needs_the_flag_and_is_warned_of(mfmd, settings: Settings, tmp_path: Path) -> None:
    weights = build_network(settings.network.architecture(), len(settings.classes)).state_dict()
    torch.save({"model": weights, "extra": Malicious(str(tmp_path / "it ran"))}, tmp_path / "old.pt")
    refused = mfmd("import", "old.pt")
    assert refused.code == ExitCode.FAILURE
    assert "error[unsupported_model]: old.pt: .pt files are pickles" in refused.err and "--unsafe-pickle" in refused.err
    assert not (tmp_path / "it ran").exists()
    taken = mfmd("import", "old.pt", "--unsafe-pickle", "--json")
    assert taken.code == ExitCode.OK
    assert json.loads(taken.out)["version"] == 1
    assert taken.err.count("warning: old.pt") == 2 and "running its code now" in taken.err
    assert (tmp_path / "it ran").exists()
