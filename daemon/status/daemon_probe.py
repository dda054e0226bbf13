"""Ask the running daemon what it does: through its socket, or from the file that it writes when the disk lets it."""

import http.client

from daemon.net.local import LocalConnection
from daemon.runtime.activity import Activity, read_activity
from storage.layout import StateLayout

PATH = "/v1/activity"
"""Where the control API tells it."""
TIMEOUT_SECONDS = 1.0


def running_activity(layout: StateLayout) -> Activity:
    """Return what the daemon that holds the state directory does; an empty activity while it starts.

    Another user than the daemon's may not open the socket, and reads the file, which is old while the disk is full.
    """
    connection = LocalConnection(layout.socket, TIMEOUT_SECONDS)
    try:
        connection.request("GET", PATH)
        answer = connection.getresponse()
        return Activity.model_validate_json(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        return read_activity(layout.run_file("activity")) or Activity()
    finally:
        connection.close()
