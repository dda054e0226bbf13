"""What the inference plane does, in a few words for people: the same on the command line and on the page."""

from daemon.status.plane_probe import PlaneStatus


def describe_plane(plane: PlaneStatus) -> str:
    """For example `127.0.0.1:8009 answers with 3`, or what keeps it from answering."""
    if plane.up:
        return f"{plane.host}:{plane.port} {_loaded(plane)}"
    if plane.refused:
        return f"{plane.host}:{plane.port} does not take this configuration's serving.token"
    return "the inference plane starts" if plane.starting else "no inference plane answers"


def _loaded(plane: PlaneStatus) -> str:
    if plane.version is not None:
        return f"answers with {plane.version}"
    if plane.wanted is None or plane.detail:  # it says itself what is wrong with it
        return "has no version loaded"
    failed = plane.wanted == plane.failed_version
    return f"has no version loaded, {plane.wanted} cannot serve" if failed else f"loads version {plane.wanted}"
