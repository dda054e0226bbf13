"""Where the model comes from and what it learns from: serving checkpoint, source images, canary images."""

from configs.settings import Settings
from daemon.doctor.finding import Finding, fail, ok, warn
from storage.canary.images import survey_canary
from storage.canary.records import LEAST_IMAGES
from storage.errors import NoCheckpoint, SourceRefused, StorageError, UnknownVersion
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.source.label_survey import LabelSurvey


def examine_models(settings: Settings) -> list[Finding]:
    """Return findings about the registry, the labelled source and the canary images."""
    findings = [_serving(settings), _source(settings), *_canary(settings)]
    if settings.gate.policy == "always":
        remedy = "set gate.policy to auto unless this is an experiment"
        findings.append(warn("gate", "gate.policy is always: candidates serve unchecked", remedy))
    return findings


def _serving(settings: Settings) -> Finding:
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    another = "`mfmd rollback` serves the version before, `mfmd promote N` another one of `mfmd checkpoints list`"
    try:
        version = registry.serving_version()
    except NoCheckpoint:
        remedy = "`mfmd pretrain` trains one on source images, `mfmd import PATH` imports a trained model"
        return fail("checkpoint", "no version serves yet", remedy)
    except UnknownVersion as error:
        return fail("checkpoint", str(error), another)
    except StorageError as error:
        return fail("checkpoint", str(error), "stop `mfmd run`, then `mfmd check --repair`")
    try:
        registry.verify(version)
    except StorageError as error:
        return fail("checkpoint", str(error), another)
    names = [str(item["name"]) for item in registry.manifest(version).classes]
    if names != [item.name for item in settings.classes]:
        remedy = "use the class list that the model was trained with, or train a new one"
        return fail("checkpoint", f"version {version} has other classes than the configuration", remedy)
    return ok("checkpoint", f"version {version} serves and matches its hashes")


def _source(settings: Settings) -> Finding:
    source = settings.source
    if source is None:
        remedy = "set source.images and source.labels if you have any: they improve rounds and the gate"
        return warn("source", "no labelled source images: rounds are source-free", remedy)
    try:
        survey = LabelSurvey(settings)
    except SourceRefused as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        meant = f"; {error.problems[-1]}" if more else ""
        remedy = "add or correct the files, source.labels, source.label_suffix, label_format or label_map"
        return fail("source", f"{error.problems[0]}{more}{meant}", remedy)
    return survey_finding(survey)


def _canary(settings: Settings) -> list[Finding]:
    try:
        surveys = survey_canary(settings, StateLayout(settings.state))
    except StorageError as error:
        return [fail("canary", str(error), "correct or remove the files, or canary.images; no candidate is accepted")]
    if not surveys:
        return []
    counts = [line for survey in surveys for line in (*survey.counts.lines(), *survey.counts.warnings())]
    images = sum(len(survey.pairs) for survey in surveys)
    detail = "\n".join([f"{images} images with labels:", *counts])
    if images >= LEAST_IMAGES:
        return [ok("canary", detail)]
    return [warn("canary", detail, f"{LEAST_IMAGES - images} more decide about candidates; so few can only veto")]


def survey_finding(survey: LabelSurvey) -> Finding:
    """Return a finding with the table of label values."""
    what = f"{len(survey.pairs)} images with labels; `mfmd pretrain` reads all, here {len(survey.read)}:"
    detail = "\n".join([what, *survey.counts.lines(), *survey.counts.warnings()])
    if survey.counts.warnings():
        return warn("source", detail, "correct the class list, the labels, source.label_format or label_map if unmeant")
    return ok("source", detail)
