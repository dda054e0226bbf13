"""What is missing for a plan of `paper.py`: folders, labels, label values, weights. Each thing is looked at once."""

from collections.abc import Callable, Sequence

import torch
from paper_data import DATA_SETS
from paper_plan import Job, target_names

from adapters.errors import AdapterError
from adapters.networks.build import build_checked
from adapters.networks.foundation_model import load_foundation_model
from adapters.networks.weight_files import weight_files
from configs.watch import WatchSettings
from storage.errors import SourceRefused
from storage.source.label_survey import LabelSurvey


def missing(jobs: Sequence[Job]) -> list[str]:
    """Return what is missing or wrong for `jobs`: folders, labels, label values, weights. Nothing is written but links.

    Every header of a labelled pair is read, and up to 100 labels of each split.
    """
    problems, seen = list[str](), set[tuple[str, ...]]()
    for job in jobs:
        for about, check in (
            (("train", job.row.source), _train_problems),
            (("validation", job.row.target), _validation_problems),
            (("target", job.row.target), _target_problems),
            (("weights", str(job.weights), job.network.name), _weight_problems),
            (("foundation", str(job.foundation)), _foundation_problems),
        ):
            if about not in seen:
                seen.add(about)
                problems += check(job)
    return list(dict.fromkeys(problems))


def _refusal(look: Callable[[], object]) -> list[str]:
    """Return what a reader of the product says against files that it refuses; nothing when it takes them."""
    try:
        look()
    except SourceRefused as error:
        return list(error.problems)
    except AdapterError as error:
        return [str(error)]
    return []


def _train_problems(job: Job) -> list[str]:
    return _refusal(lambda: LabelSurvey(job.settings))


def _validation_problems(job: Job) -> list[str]:
    return _refusal(lambda: LabelSurvey(job.scoring))


def _target_problems(job: Job) -> list[str]:
    values = job.values({})
    watch, most = WatchSettings.model_validate(values["watch"]), values["buffer"]["capacity_frames"]
    if not watch.folder.is_dir():
        return [f"{watch.folder}: no such folder of {DATA_SETS[job.row.target].title}"]
    found = len(target_names(watch))
    if not found:
        return [f"{watch.folder}: holds no target image"]
    return [f"{watch.folder}: {found} images, the buffer of {job.key} holds {most}"] if found > most else []


def _weight_problems(job: Job) -> list[str]:
    if not job.weights.is_dir():
        what = f"save the ImageNet weights of {job.network.encoder} there, with save_pretrained()"
        return [f"{job.weights}: no such directory of weights; {what}"]
    return _refusal(lambda: weight_files(job.weights)) or _refusal(lambda: build_checked(job.network.architecture(), 2))


def _foundation_problems(job: Job) -> list[str]:
    directory = job.foundation
    if directory is None:
        return []
    with torch.device("meta"):  # everything but the values is compared
        return _refusal(lambda: load_foundation_model(directory))
