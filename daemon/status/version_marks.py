"""What an operator should know of a version before going back to it, in a few words, from the registry's history."""

from storage.registry.history import never_served, rolled_back_from, verdicts_against
from storage.registry.registry import CheckpointRegistry


def history_marks(registry: CheckpointRegistry) -> dict[int, list[str]]:
    """For every version on disk: `rolled back`, `never served`, and the gate's verdict if it did not let it serve
    (`rejected` or `inconclusive`).
    """
    events, versions = registry.history(), registry.versions()
    bad, unserved, verdicts = rolled_back_from(events), never_served(events, versions), verdicts_against(events)
    marks: dict[int, list[str]] = {version: [] for version in versions}
    for version, own in marks.items():
        own += ["rolled back"] if version in bad else []
        own += ["never served"] if version in unserved else []
        own += [verdicts[version]] if version in verdicts else []
    return marks
